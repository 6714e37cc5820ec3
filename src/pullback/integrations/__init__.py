"""Where users work: pytest, notebooks, the Trainers of Hugging Face and Lightning. Nothing here is imported by itself.

=================================== ==============================================================================
``pytest --gradients``              audits the backward passes of every test; fixture ``assert_gradients``
``%load_ext pullback``              ``%audit loss(x)`` and ``%%audit`` in a notebook
``integrations.transformers``       ``GradientCallback`` for ``transformers.Trainer(callbacks=[...])``
``integrations.lightning``          ``GradientCallback`` for ``lightning.Trainer(callbacks=[...])``
``integrations.torchdiffeq``        ``odeint``, ``odeint_adjoint``, ``odeint_event`` with torchdiffeq's signatures
=================================== ==============================================================================
"""
