"""Diagnostics of chains that lack nothing."""

from abstain.training.inference.diagnostics import ChainDiagnostics, Convergence

GOOD = ChainDiagnostics(
    function=Convergence(rhat=1.004, ess_bulk=900.0, ess_tail=800.0, mcse=0.03, ess_per_second=90.0, values=50),
    parameters=Convergence(rhat=2.9, ess_bulk=4.0, ess_tail=4.0, mcse=0.5, ess_per_second=0.4, values=14),
    chains=4,
    samples=4000,
    divergences=4,
    acceptance=(0.8, 0.82, 0.79, 0.81),
    ebfmi=(0.9, 0.8, 1.1, 0.7),
    leapfrogs_per_sample=7.0,
    warmup_seconds=5.0,
    sampling_seconds=10.0,
    compile_seconds=2.0,
    trace=((-3.0, -2.0),) * 4,
)
"""At the limit of divergences; its parameters have not converged, which decides nothing."""
