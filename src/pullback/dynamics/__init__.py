"""Time with a gradient: ODE solvers and their adjoints, events, neural and latent ODEs, continuous flows."""

from __future__ import annotations

from pullback.dynamics.adapters import Adapter, FrozenBackbone, action_kl, feature_alignment_loss
from pullback.dynamics.adjoints import ADJOINTS
from pullback.dynamics.amber import AmberForceField, amber_energy, read_prmtop
from pullback.dynamics.arguments import AttemptedStep, Backsolve
from pullback.dynamics.barriers import BarrierCondition, barrier_condition, lie_derivative
from pullback.dynamics.basins import Approach, Basin, FreeEnergy, approach, basin, free_energy
from pullback.dynamics.bias import GaussianGridBias, NeuralBias
from pullback.dynamics.block_world import BlockState, BlockView, BlockWorld
from pullback.dynamics.brownian import BrownianPath
from pullback.dynamics.chaotic import colliding_discs, double_pendulum, lorenz, rk4_step
from pullback.dynamics.continuous_flow import ContinuousFlow, FlowSample, GatedField
from pullback.dynamics.control import StepControl
from pullback.dynamics.controllers import BoundedPolicy, PIDController, PIDState
from pullback.dynamics.convergence import ConvergenceOrder, convergence_order
from pullback.dynamics.dead_ends import DeadEndValues, SecurityGap, avoid_dead_ends, double_q_target, security_gap
from pullback.dynamics.decision_process import MarkovDecisionProcess, OptimalValues, Transitions, empirical_process
from pullback.dynamics.diffusion import DiffusionProblems, diffusion_problems, random_waves
from pullback.dynamics.driving import bicycle_step, intelligent_driver
from pullback.dynamics.driving_agents import DrivingAgent, PlannerView, StudentPlanner, perceive, with_speed
from pullback.dynamics.driving_networks import ActionLaw, DrivingPlanner, GroundPerception, GroundView
from pullback.dynamics.driving_town import DrivingState
from pullback.dynamics.driving_views import DrivingCamera
from pullback.dynamics.driving_world import DrivingEvents, DrivingScores, DrivingWorld, RoadAhead
from pullback.dynamics.environments import (
    Environment,
    EnvironmentStep,
    cartpole,
    double_integrator,
    pendulum,
    point_mass,
)
from pullback.dynamics.events import Event
from pullback.dynamics.finite_elements import (
    FunctionSpace,
    assemble,
    evaluate,
    finite_element_loss,
    load_vector,
    project,
    prolongation,
    solve_dirichlet,
)
from pullback.dynamics.force_field import Harmonic, equilibrate_charges, mixture_to_harmonic, torsion_energy
from pullback.dynamics.glucose import (
    GlucoseEquilibrium,
    GlucoseModel,
    MealScenarios,
    RiskIndex,
    meal_scenarios,
    risk_index,
    time_in_range,
)
from pullback.dynamics.glucose_loop import GlucoseDays, GlucoseLoop, LoopReading
from pullback.dynamics.gridworlds import GridWorld, LifeGate, four_rooms, life_gate
from pullback.dynamics.grounding import (
    GroundingLoss,
    ModeClassifier,
    ModePolicy,
    feasibility_matrix,
    grounding_loss,
    mode_feasibility,
    perturb_trajectories,
)
from pullback.dynamics.history import HistoryEncoder
from pullback.dynamics.imagination import ImaginationLoss, imagination_policy_loss
from pullback.dynamics.internal_coordinates import bond_angles, dihedrals, pair_distances
from pullback.dynamics.invariance import InvariantODE, InvariantSolution
from pullback.dynamics.known_spectra import NoisyLogisticMap, four_well_potential, langevin_generator
from pullback.dynamics.latent_ode import BackwardsEncoder, EvidenceLowerBound, LatentODE
from pullback.dynamics.linear_values import linear_td, lyapunov_value_error, optimal_features, value_error
from pullback.dynamics.locomotion import (
    PeriodicController,
    actuation_loss,
    crawl_loss,
    goal_schedule,
    height_loss,
    pose_loss,
    velocity_loss,
)
from pullback.dynamics.markov import MarkovChain, metropolis_walk
from pullback.dynamics.mass_spring import MassSpring, SpringMotion, VoxelRobot, voxel_robot
from pullback.dynamics.material_points import MaterialMotion, MaterialPoints
from pullback.dynamics.metadynamics import HillBias, Metadynamics, metadynamics
from pullback.dynamics.methods import METHODS
from pullback.dynamics.min_norm import Filtered, min_norm_filter
from pullback.dynamics.molecular_energy import (
    COULOMB,
    BondedEnergy,
    ForceMatchingLoss,
    bonded_energy,
    force_matching_loss,
    linear_torsions,
    nonbonded_energy,
)
from pullback.dynamics.molecular_geometry import MinimizedGeometry, export_parameters, minimize_geometry
from pullback.dynamics.molecular_graph import (
    ATOM_FEATURES,
    Topology,
    join_topologies,
    molecular_graph,
    molecular_topology,
)
from pullback.dynamics.molecular_networks import ForceFieldNetwork, GraphSage, JanossyPooling, MoleculeParameters
from pullback.dynamics.networks import ConvolutionalField, NeuralField, ResidualBlock
from pullback.dynamics.neural_ode import NeuralODE
from pullback.dynamics.neural_operators import DeepOperatorNetwork, FourierOperator
from pullback.dynamics.odeint import ODESolution, odeint
from pullback.dynamics.operator_networks import MeshProcessor, MultigridProcessor, StructurePreservingOperator
from pullback.dynamics.operator_scores import (
    FeatureCovariances,
    covariances,
    generator_covariance,
    generator_score,
    metric_distortion,
    projection_score,
    relaxed_score,
    vamp2_score,
)
from pullback.dynamics.oscillators import duffing, lotka_volterra, van_der_pol
from pullback.dynamics.padova import PadovaModel
from pullback.dynamics.pessimism import (
    PessimisticValues,
    Suboptimality,
    pessimistic_value_iteration,
    suboptimality,
)
from pullback.dynamics.planar_flow import PlanarFlow
from pullback.dynamics.planning import (
    Plan,
    imagined_return,
    plan_cem,
    plan_gradient,
    plan_mppi,
    plan_random_shooting,
)
from pullback.dynamics.policy_gradient import (
    Advantages,
    PolicyLoss,
    PolicyUpdates,
    generalized_advantage,
    ppo_loss,
    ppo_update,
)
from pullback.dynamics.polygons import PolygonWorld, polygon_world
from pullback.dynamics.rare_events import CrossingAdjoints, crossing_adjoints
from pullback.dynamics.recurrent import AutoregressiveRNN, LatentRNN
from pullback.dynamics.regression import Regression, d2_divergence, estimate_variance, weighted_regression
from pullback.dynamics.regulator import Regulator, lqr
from pullback.dynamics.replay import ReplayBuffer, Sequences
from pullback.dynamics.representations import AuxiliaryValueHeads, RandomRewards, subspace_alignment
from pullback.dynamics.rollout import rollout
from pullback.dynamics.sde import SDESolution, sdeint
from pullback.dynamics.slot_transitions import AlignedTransition, GraphTransition
from pullback.dynamics.state_space import Beliefs, RecurrentStateSpaceModel, StateSpaceLoss
from pullback.dynamics.steering import steer
from pullback.dynamics.tableaux import Tableau
from pullback.dynamics.td_learning import TDField, TDFlow, td_field, td_flow, td_loss
from pullback.dynamics.trajectories import (
    Trajectory,
    TrajectoryAdjoint,
    minibatch_parameter_gradient,
    muller_brown,
    muller_brown_force,
    trajectory_adjoint,
    underdamped_langevin,
)
from pullback.dynamics.transfer_operators import OperatorSingular, OperatorSpectrum, TransferOperator
from pullback.dynamics.triangulations import Located, Mesh, grid_mesh
from pullback.dynamics.two_links import acrobot, reacher
from pullback.dynamics.vehicles import DiscRoad, disc_ranges, vehicle
from pullback.dynamics.world_models import (
    ConsistencyLoss,
    LatentWorldModel,
    latent_consistency_loss,
    latent_policy_loss,
    truncated_normal,
    update_average,
)

__all__ = [
    "ADJOINTS",
    "ATOM_FEATURES",
    "COULOMB",
    "METHODS",
    "ActionLaw",
    "Adapter",
    "Advantages",
    "AlignedTransition",
    "AmberForceField",
    "Approach",
    "AttemptedStep",
    "AutoregressiveRNN",
    "AuxiliaryValueHeads",
    "Backsolve",
    "BackwardsEncoder",
    "BarrierCondition",
    "Basin",
    "Beliefs",
    "BlockState",
    "BlockView",
    "BlockWorld",
    "BondedEnergy",
    "BoundedPolicy",
    "BrownianPath",
    "ConsistencyLoss",
    "ContinuousFlow",
    "ConvergenceOrder",
    "ConvolutionalField",
    "CrossingAdjoints",
    "DeadEndValues",
    "DeepOperatorNetwork",
    "DiffusionProblems",
    "DiscRoad",
    "DrivingAgent",
    "DrivingCamera",
    "DrivingEvents",
    "DrivingPlanner",
    "DrivingScores",
    "DrivingState",
    "DrivingWorld",
    "Environment",
    "EnvironmentStep",
    "Event",
    "EvidenceLowerBound",
    "FeatureCovariances",
    "Filtered",
    "FlowSample",
    "ForceFieldNetwork",
    "ForceMatchingLoss",
    "FourierOperator",
    "FreeEnergy",
    "FrozenBackbone",
    "FunctionSpace",
    "GatedField",
    "GaussianGridBias",
    "GlucoseDays",
    "GlucoseEquilibrium",
    "GlucoseLoop",
    "GlucoseModel",
    "GraphSage",
    "GraphTransition",
    "GridWorld",
    "GroundPerception",
    "GroundView",
    "GroundingLoss",
    "Harmonic",
    "HillBias",
    "HistoryEncoder",
    "ImaginationLoss",
    "InvariantODE",
    "InvariantSolution",
    "JanossyPooling",
    "LatentODE",
    "LatentRNN",
    "LatentWorldModel",
    "LifeGate",
    "Located",
    "LoopReading",
    "MarkovChain",
    "MarkovDecisionProcess",
    "MassSpring",
    "MaterialMotion",
    "MaterialPoints",
    "MealScenarios",
    "Mesh",
    "MeshProcessor",
    "Metadynamics",
    "MinimizedGeometry",
    "ModeClassifier",
    "ModePolicy",
    "MoleculeParameters",
    "MultigridProcessor",
    "NeuralBias",
    "NeuralField",
    "NeuralODE",
    "NoisyLogisticMap",
    "ODESolution",
    "OperatorSingular",
    "OperatorSpectrum",
    "OptimalValues",
    "PIDController",
    "PIDState",
    "PadovaModel",
    "PeriodicController",
    "PessimisticValues",
    "Plan",
    "PlanarFlow",
    "PlannerView",
    "PolicyLoss",
    "PolicyUpdates",
    "PolygonWorld",
    "RandomRewards",
    "RecurrentStateSpaceModel",
    "Regression",
    "Regulator",
    "ReplayBuffer",
    "ResidualBlock",
    "RiskIndex",
    "RoadAhead",
    "SDESolution",
    "SecurityGap",
    "Sequences",
    "SpringMotion",
    "StateSpaceLoss",
    "StepControl",
    "StructurePreservingOperator",
    "StudentPlanner",
    "Suboptimality",
    "TDField",
    "TDFlow",
    "Tableau",
    "Topology",
    "Trajectory",
    "TrajectoryAdjoint",
    "TransferOperator",
    "Transitions",
    "VoxelRobot",
    "acrobot",
    "action_kl",
    "actuation_loss",
    "amber_energy",
    "approach",
    "assemble",
    "avoid_dead_ends",
    "barrier_condition",
    "basin",
    "bicycle_step",
    "bond_angles",
    "bonded_energy",
    "cartpole",
    "colliding_discs",
    "convergence_order",
    "covariances",
    "crawl_loss",
    "crossing_adjoints",
    "d2_divergence",
    "diffusion_problems",
    "dihedrals",
    "disc_ranges",
    "double_integrator",
    "double_pendulum",
    "double_q_target",
    "duffing",
    "empirical_process",
    "equilibrate_charges",
    "estimate_variance",
    "evaluate",
    "export_parameters",
    "feasibility_matrix",
    "feature_alignment_loss",
    "finite_element_loss",
    "force_matching_loss",
    "four_rooms",
    "four_well_potential",
    "free_energy",
    "generalized_advantage",
    "generator_covariance",
    "generator_score",
    "goal_schedule",
    "grid_mesh",
    "grounding_loss",
    "height_loss",
    "imagination_policy_loss",
    "imagined_return",
    "intelligent_driver",
    "join_topologies",
    "langevin_generator",
    "latent_consistency_loss",
    "latent_policy_loss",
    "lie_derivative",
    "life_gate",
    "linear_td",
    "linear_torsions",
    "load_vector",
    "lorenz",
    "lotka_volterra",
    "lqr",
    "lyapunov_value_error",
    "meal_scenarios",
    "metadynamics",
    "metric_distortion",
    "metropolis_walk",
    "min_norm_filter",
    "minibatch_parameter_gradient",
    "minimize_geometry",
    "mixture_to_harmonic",
    "mode_feasibility",
    "molecular_graph",
    "molecular_topology",
    "muller_brown",
    "muller_brown_force",
    "nonbonded_energy",
    "odeint",
    "optimal_features",
    "pair_distances",
    "pendulum",
    "perceive",
    "perturb_trajectories",
    "pessimistic_value_iteration",
    "plan_cem",
    "plan_gradient",
    "plan_mppi",
    "plan_random_shooting",
    "point_mass",
    "polygon_world",
    "pose_loss",
    "ppo_loss",
    "ppo_update",
    "project",
    "projection_score",
    "prolongation",
    "random_waves",
    "reacher",
    "read_prmtop",
    "relaxed_score",
    "risk_index",
    "rk4_step",
    "rollout",
    "sdeint",
    "security_gap",
    "solve_dirichlet",
    "steer",
    "suboptimality",
    "subspace_alignment",
    "td_field",
    "td_flow",
    "td_loss",
    "time_in_range",
    "torsion_energy",
    "trajectory_adjoint",
    "truncated_normal",
    "underdamped_langevin",
    "update_average",
    "value_error",
    "vamp2_score",
    "van_der_pol",
    "vehicle",
    "velocity_loss",
    "voxel_robot",
    "weighted_regression",
    "with_speed",
]
