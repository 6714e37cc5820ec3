"""The UVA/Padova simulator of a patient with type 1 diabetes (2008), in thirteen states, differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_positive, check_same_dtype, check_shape
from pullback.core.shapes import Float
from pullback.core.transforms import can_look
from pullback.dynamics.glucose import GlucoseEquilibrium

__all__ = ["PadovaModel"]

_PICOMOLES = 6.0  # of insulin, 1 mU
_MILLIGRAMS = 1000.0  # of a gram
_CRUMB = 1e-3  # [mg] smallest meal: after none the stomach empties at its fastest


class PadovaModel:
    r"""A patient of the UVA/Padova simulator, with the insulin that an infusion under the skin brings.

    .. math::
        \dot Q_1 &= 1000\, d - k_{max} Q_1, \quad \dot Q_2 = k_{max} Q_1 - k Q_2, \\
        \dot Q_3 &= k Q_2 - k_{abs} Q_3, \quad R = f k_{abs} Q_3 / W - k_{e1} \max(G_p - k_{e2}, 0), \\
        \dot G_p &= \max(k_{p1} - k_{p2} G_p - k_{p3} I_d, 0) + R - F - k_1 G_p + k_2 G_t, \\
        \dot G_t &= k_1 G_p - k_2 G_t - \frac{(V_{m0} + V_{mx} X) G_t}{K_m + G_t}, \\
        \dot I_p &= m_1 I_l - (m_2 + m_4) I_p + k_{a1} S_1 + k_{a2} S_2, \\
        \dot I_l &= m_2 I_p - (m_1 + m_{30}) I_l, \quad \dot X = p_{2u} (I_p / V_i - I_b - X), \\
        \dot I_1 &= k_i (I_p / V_i - I_1), \quad \dot I_d = k_i (I_1 - I_d), \\
        \dot S_1 &= 6 u / W - (k_{a1} + k_d) S_1, \quad \dot S_2 = k_d S_1 - k_{a2} S_2, \\
        \dot G_s &= k_{sc} (G_p - G_s),

    where the stomach empties at a rate k between k_min and k_max that depends on what is left of the meal. The state
    is (Q1, Q2, Q3, Gp, Gt, Ip, X, I1, Id, Il, S1, S2, Gs), that of the simulator: carbohydrates in stomach and gut
    [mg], glucose in plasma and tissue [mg/kg], insulin [pmol/kg; X, I1, Id: pmol/l], glucose under the skin [mg/kg].
    Inputs are (u, d, D): insulin [mU/min], carbohydrates eaten [g/min], and the size of the last meal [g], 0 before
    the first one.

    Args:
        constants: the entries of :attr:`NAMES`, ``[*batch]`` each, > 0, under the simulator's names and in its units
            (:func:`pullback.data.virtual_patients`). V_m0 and k_p1 follow from rest at Gb and Ib and are not asked for.

    Raises:
        TypeError: a constant is no floating tensor, or dtypes differ.
        ValueError: a constant is missing or not positive, b or d is 1 or more, or at rest no glucose reaches the
            tissue.

    Example:
        >>> numbers = "68.7 149 97.6 1.68 .0482 .091 .0159 .0083 .83 .32 .9 3.39 .0233 .0233 .0089 1 .0005 339 .0573 "
        >>> numbers += ".0677 .0747 261 .0213 .152 .259 .104 .228 .0025 .0115 .0185 .056"
        >>> patient = PadovaModel(dict(zip(PadovaModel.NAMES, torch.tensor([*map(float, numbers.split())]))))
        >>> rest = patient.equilibrium()
        >>> round(patient.observe(rest.state).item()), 10 < rest.insulin.item() < 20
        (149, True)
        >>> advance = patient.stepper(5.0)
        >>> bool(advance(rest.state, torch.tensor([0.0, 0.0, 0.0]))[3] > rest.state[3])  # without insulin it rises
        True

    References:
        Dalla Man, Rizza, Cobelli (2007), Meal simulation model of the glucose-insulin system, IEEE TBME 54; Kovatchev,
        Breton, Dalla Man, Cobelli (2009), In silico preclinical trials, J. Diabetes Sci. Technol. 3. The open
        simulator simglucose adds to D what an earlier meal left in the stomach; here, as in the first paper, D is the
        meal alone.
    """

    NAMES = tuple(
        "BW Gb Ib Vg Vi kabs kmax kmin b d f EGPb kp2 kp3 ki Fsnc ke1 ke2 k1 k2 Vmx Km0 p2u m1 m2 m4 m30 "
        "ka1 ka2 kd ksc".split()
    )
    """The constants that are asked for: weight W [kg], basal glucose [mg/dl] and insulin [pmol/l], volumes of glucose
    [dl/kg] and insulin [l/kg], then those of the equations (F is ``Fsnc``, K_m ``Km0``), and the production of glucose
    at rest [mg/kg/min]."""

    def __init__(self, constants: Mapping[str, Tensor]) -> None:
        missing = [name for name in self.NAMES if name not in constants]
        if missing:
            raise ValueError(f"constants must have {', '.join(self.NAMES)}; missing: {', '.join(missing)}")
        given = {name: check_floating(name, constants[name]) for name in self.NAMES}
        check_same_dtype(**given)
        for name, value in given.items():
            if can_look(value):
                check_positive(name, value)
        self.constants = dict(zip(given, torch.broadcast_tensors(*given.values()), strict=True))
        c = self.constants
        plasma = c["Gb"] * c["Vg"]
        spilled = c["ke1"] * (plasma - c["ke2"]).clamp(min=0)
        self.tissue = (c["Fsnc"] + spilled + c["k1"] * plasma - c["EGPb"]) / c["k2"]
        used = c["EGPb"] - c["Fsnc"] - spilled
        if can_look(used):
            for name in ("b", "d"):
                if bool((c[name] >= 1).any()):
                    raise ValueError(f"{name} must be below 1, got {c[name].max().item():g}")
            if not bool(((used > 0) & (self.tissue > 0)).all()):
                raise ValueError("EGPb must exceed what brain and kidneys use at rest, and leave glucose in the tissue")
        self.Vm0 = used * (c["Km0"] + self.tissue) / self.tissue
        self.kp1 = c["EGPb"] + c["kp2"] * plasma + c["kp3"] * c["Ib"]
        self._fast, self._span = c["kmax"], 0.5 * (c["kmax"] - c["kmin"])
        self._full, self._b, self._low = 2.5 / (1 - c["b"]), 2.5 * c["b"] / (1 - c["b"]), 2.5 / c["d"]

    def field(self, t: Tensor, x: Float[Tensor, "*batch 13"], inputs: Float[Tensor, "*batch 3"]) -> Tensor:
        """Return the rate of the state, ``[*batch, 13]``; ``t`` is unused. Below 0 glucose falls no further."""
        self._check(x, inputs)
        c = self.constants
        q1, q2, q3, plasma, tissue, insulin, action, i1, delayed, liver, s1, s2, shown = x.unbind(-1)
        u, d, meal = inputs.unbind(-1)
        k = self._emptying((q1 + q2) / (_MILLIGRAMS * meal).clamp(min=_CRUMB))
        made = (self.kp1 - c["kp2"] * plasma - c["kp3"] * delayed).clamp(min=0)
        gained = made + c["f"] * c["kabs"] * q3 / c["BW"] - c["Fsnc"] - c["ke1"] * (plasma - c["ke2"]).clamp(min=0)
        used = (self.Vm0 + c["Vmx"] * action) * tissue / (c["Km0"] + tissue)
        moved = c["k1"] * plasma - c["k2"] * tissue
        seen = insulin / c["Vi"]
        rates = [
            _MILLIGRAMS * d - c["kmax"] * q1,
            c["kmax"] * q1 - k * q2,
            k * q2 - c["kabs"] * q3,
            torch.where(plasma >= 0, gained - moved, 0),
            torch.where(tissue >= 0, moved - used, 0),
            c["m1"] * liver - (c["m2"] + c["m4"]) * insulin + c["ka1"] * s1 + c["ka2"] * s2,
            c["p2u"] * (seen - c["Ib"] - action),
            c["ki"] * (seen - i1),
            c["ki"] * (i1 - delayed),
            c["m2"] * insulin - (c["m1"] + c["m30"]) * liver,
            _PICOMOLES * u / c["BW"] - (c["ka1"] + c["kd"]) * s1,
            c["kd"] * s1 - c["ka2"] * s2,
            c["ksc"] * (plasma - shown),
        ]
        return torch.stack(torch.broadcast_tensors(*rates), -1)

    def equilibrium(self) -> GlucoseEquilibrium:
        """Return the state of rest at Gb and Ib with an empty gut, and the infusion [mU/min] that keeps it."""
        c = self.constants
        insulin = c["Ib"] * c["Vi"]
        liver = c["m2"] * insulin / (c["m1"] + c["m30"])
        arriving = (c["m2"] + c["m4"]) * insulin - c["m1"] * liver  # all that is infused arrives
        s1, s2 = arriving / (c["ka1"] + c["kd"]), c["kd"] * arriving / (c["ka1"] + c["kd"]) / c["ka2"]
        plasma, none = c["Gb"] * c["Vg"], torch.zeros_like(insulin)
        state = [none, none, none, plasma, self.tissue, insulin, none, c["Ib"], c["Ib"], liver, s1, s2, plasma]
        return GlucoseEquilibrium(torch.stack(state, -1), arriving * c["BW"] / _PICOMOLES)

    def glucose(self, x: Float[Tensor, "*batch 13"]) -> Tensor:
        """Return glucose in plasma [mg/dl], ``[*batch]``."""
        check_shape("x", x, (13,))
        return x[..., 3] / self.constants["Vg"]

    def observe(self, x: Float[Tensor, "*batch 13"]) -> Tensor:
        """Return glucose under the skin, where the sensor sits [mg/dl], ``[*batch]``."""
        check_shape("x", x, (13,))
        return x[..., 12] / self.constants["Vg"]

    def stepper(self, minutes: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return ``step(x, inputs) -> x`` over some minutes of constant inputs, of second order, stable at any length.

        Insulin is linear and exact; the gut keeps its mass, emptied at the rate of the step's middle; glucose moves by
        the implicit midpoint rule, its uptake linear around a first guess of the middle.
        """
        check_positive("minutes", minutes)
        c, half = self.constants, 0.5 * minutes
        zero, one = torch.zeros_like(c["BW"]), torch.ones_like(c["BW"])
        rate = [[zero] * 9 for _ in range(9)]  # of (Ip, X, I1, Id, Il, S1, S2), u and 1
        rate[0][0], rate[0][4], rate[0][5], rate[0][6] = -(c["m2"] + c["m4"]), c["m1"], c["ka1"], c["ka2"]
        rate[1][0], rate[1][1], rate[1][8] = c["p2u"] / c["Vi"], -c["p2u"], -c["p2u"] * c["Ib"]
        rate[2][0], rate[2][2] = c["ki"] / c["Vi"], -c["ki"]
        rate[3][2], rate[3][3] = c["ki"], -c["ki"]
        rate[4][0], rate[4][4] = c["m2"], -(c["m1"] + c["m30"])
        rate[5][5], rate[5][7] = -(c["ka1"] + c["kd"]), _PICOMOLES / c["BW"] * one
        rate[6][5], rate[6][6] = c["kd"], -c["ka2"]
        matrix = torch.stack([torch.stack(row, -1) for row in rate], -2)
        move = torch.linalg.matrix_exp(minutes * matrix)[..., :7, :]
        stays, left, seen = ((-minutes * c[name]).exp() for name in ("kmax", "kabs", "ksc"))
        eaten = _MILLIGRAMS * -torch.expm1(-minutes * c["kmax"]) / c["kmax"]
        taken = -torch.expm1(-minutes * c["kabs"]) / (minutes * c["kabs"])
        appear = c["f"] / (minutes * c["BW"])
        forth, back = half * c["k1"], half * c["k2"]
        into, out, cross = 1 + forth, 1 + back, forth * back

        def step(x: Tensor, inputs: Tensor) -> Tensor:
            self._check(x, inputs)
            q1, q2, q3, plasma, tissue = x[..., :5].unbind(-1)
            u, d, meal = inputs.unbind(-1)
            known = torch.cat([x[..., 5:12], u[..., None], torch.ones_like(x[..., :1])], -1)
            new = (move @ known[..., None])[..., 0]

            food, held = minutes * _MILLIGRAMS * d, q1 + q2
            scale = 1 / (_MILLIGRAMS * meal).clamp(min=_CRUMB)
            middle = held + 0.5 * food - half * self._emptying(scale * held) * q2
            fade = minutes * self._emptying(scale * middle)
            kept = (-fade).exp()
            first = stays * q1 + eaten * d
            flow = q1 + food - first
            second = kept * q2 + flow * (1 - kept) / fade
            flow = q2 + flow - second
            third = left * q3 + taken * flow
            appeared = appear * (q3 + flow - third)

            able = half * (self.Vm0 + 0.5 * c["Vmx"] * (x[..., 6] + new[..., 1]))
            made = self.kp1 - 0.5 * c["kp3"] * (x[..., 8] + new[..., 3])
            start = plasma + half * (appeared - c["Fsnc"])
            p, q = plasma, tissue
            for _ in range(2):  # the middle, first with the rates at the start, then with its own
                gain = (made - c["kp2"] * p).relu() - c["ke1"] * (p - c["ke2"]).relu()
                held = out + able / (c["Km0"] + q)
                p = (held * (start + half * gain) + back * tissue) / (into * held - cross)
                q = (tissue + forth * p) / held
            p, q = (2 * p - plasma).clamp(min=0), (2 * q - tissue).clamp(min=0)
            shown = seen * x[..., 12] + (1 - seen) * 0.5 * (plasma + p)
            return torch.cat([torch.stack([first, second, third, p, q], -1), new, shown[..., None]], -1)

        return step

    def _emptying(self, share: Tensor) -> Tensor:
        """The rate at which the stomach empties when it holds this share of the last meal."""
        return self._fast + self._span * ((self._full * share - self._b).tanh() - (self._low * share - 2.5).tanh())

    def _check(self, x: Tensor, inputs: Tensor) -> None:
        check_same_dtype(x=check_floating("x", x), inputs=check_floating("inputs", inputs))
        check_shape("x", x, (13,))
        check_shape("inputs", inputs, (3,))
