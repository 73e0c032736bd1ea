"""`[method]`: the settings of each inference method; `kind` chooses the method in `training/inference/methods/`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from abstain.training.config.section import Counted, Section

ChainMethod = Literal["vectorized", "sequential", "parallel"]
"""Chains in lockstep in one compiled call, one after the other, or one thread (or device) each."""
Adaptation = Literal["dual_averaging", "simple", "none"]
"""Adaptation of the step size; with "none" the mass matrix stays the identity too."""
MassMatrix = Literal["diagonal", "dense", "unit"]
Acceptance = Annotated[float, Field(gt=0, lt=1)]


class MethodSettings(Section):
    """The settings of a method, or of a search within it, and its capabilities.

    The class states what a method can do, so that no other code lists methods.
    """

    allows_augmentation: ClassVar[bool] = False
    """Whether rows may change from step to step; samplers and curvatures need one fixed density."""
    samples_normal: ClassVar[bool] = False
    """Whether the config's `draws` are drawn from a fitted normal; otherwise they are samples or modes."""

    @property
    def growing_key(self) -> str | None:
        """The setting that may grow when a fit is resumed; None if a finished fit cannot be lengthened."""
        return None

    @property
    def earlier_run(self) -> str | None:
        """The run that the fit starts from, `NAME:VERSION` in the same store."""
        return None

    @property
    def first_search(self) -> tuple[str, MethodSettings] | None:
        """The search for starts that runs first: the key of its table, and its settings."""
        return None

    @property
    def parameter_copies(self) -> dict[str, int]:
        """The number of copies of the parameters that the method needs at the same time, by the key that sets it."""
        return {}


class Optimisation(MethodSettings):
    """Settings of all methods with stochastic gradients."""

    steps: PositiveInt = 5_000
    """The number of steps of the optimiser."""
    batch_size: PositiveInt = 128
    """Rows per step; all rows, if there are fewer."""
    learning_rate: PositiveFloat = 1e-3
    """The step size of the optimiser (Adam), at its largest."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Whether the learning rate stays the same, or falls to 0 along a cosine."""
    clip: PositiveFloat | None = None
    """The largest norm of a gradient. Default: no limit."""
    reports: PositiveInt = 20
    """The number of reports and checkpoints in the whole fit."""

    @property
    def growing_key(self) -> str | None:
        """More steps, unless the learning rate falls towards the last one."""
        return "steps" if self.schedule == "constant" else None


class MAPSettings(Optimisation):
    """A search for the posterior mode."""

    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training rows that are held out to choose the best iterate; 0 takes the last iterate."""


class MAPConfig(MAPSettings):
    """The posterior mode: one draw (`methods/map.py`)."""

    allows_augmentation: ClassVar[bool] = True

    kind: Literal["map"] = "map"


class EnsembleConfig(MAPSettings):
    """Posterior modes from several starts, one draw each (`methods/ensemble.py`; Lakshminarayanan et al., 2017)."""

    allows_augmentation: ClassVar[bool] = True

    kind: Literal["ensemble"] = "ensemble"
    members: Annotated[int, Field(ge=2)] = 5
    """The number of networks, each fitted from its own start."""
    chain_method: ChainMethod = "sequential"
    """All in lockstep in one compiled call, one after the other, or one thread (or device) each."""

    @property
    def parameter_copies(self) -> dict[str, int]:
        """One for each member."""
        return {"members": self.members}


class LaplaceConfig(MAPSettings):
    """A normal about the posterior mode (`methods/laplace.py`)."""

    samples_normal: ClassVar[bool] = True

    kind: Literal["laplace"] = "laplace"
    subset: Literal["last_layer", "diagonal"] = "last_layer"
    """The last layer with its full covariance, or, for regression only, all parameters with a diagonal one."""
    prior_precision: Literal["evidence", "fixed"] = "evidence"
    """The prior's precision: chosen by the marginal likelihood, or that of `[prior]`."""


class VIConfig(Optimisation):
    """Variational inference by stochastic gradients (`methods/vi.py`)."""

    allows_augmentation: ClassVar[bool] = True
    samples_normal: ClassVar[bool] = True

    kind: Literal["vi"] = "vi"
    steps: PositiveInt = 10_000
    """The number of steps of the optimiser."""
    family: Literal["mean_field", "low_rank", "full_rank"] = "mean_field"
    """The normal of the guide: independent parameters, a covariance of low rank beside a diagonal, or a full one."""
    rank: PositiveInt = 10
    """The rank of the covariance that `low_rank` adds to a diagonal."""
    kl_weight: PositiveFloat = 1.0
    """Weight of the KL term of the ELBO: 1 for the posterior, less for a colder one."""
    init_scale: PositiveFloat = 0.03
    """Standard deviation of the guide at the start."""
    particles: PositiveInt = 1
    """Draws per gradient."""
    starts: PositiveInt = 1
    """Guides fitted from different starts; their draws are pooled."""
    start: Literal["network", "prior", "map", "run"] = "network"
    """See `training/inference/starts.py`."""
    start_from: str | None = None
    """The earlier run, `NAME:VERSION` in the same store."""
    map: MAPSettings = MAPSettings()
    """Used if `start` is "map"."""
    chain_method: ChainMethod = "sequential"
    """All in lockstep in one compiled call, one after the other, or one thread (or device) each."""

    @property
    def earlier_run(self) -> str | None:
        """The run in `start_from`."""
        return self.start_from

    @property
    def first_search(self) -> tuple[str, MethodSettings] | None:
        """A search for modes, if the guides start from modes."""
        return ("map", self.map) if self.start == "map" else None

    @property
    def parameter_copies(self) -> dict[str, int]:
        """Guides, draws for a gradient, and the columns of a low-rank covariance."""
        rank = {"rank": self.rank} if self.family == "low_rank" else {}
        return {"starts": self.starts, "particles": self.particles} | rank


class ChainSettings(MethodSettings):
    """Settings of all Markov chains."""

    chains: Annotated[int, Field(ge=2)] = 4
    """The number of chains."""
    warmup: PositiveInt = 500
    """Transitions of each chain before the first sample, in which the sampler adapts."""
    samples: PositiveInt = 500
    """Samples of each chain, before thinning to the config's `draws`."""
    thin: PositiveInt = 1
    """Transitions for each kept sample."""
    start: Literal["network", "prior", "overdispersed", "map", "vi", "run"] = "network"
    """See `training/inference/starts.py`."""
    start_from: str | None = None
    """The earlier run, `NAME:VERSION` in the same store."""
    overdispersion: PositiveFloat = 2.0
    """The factor by which "overdispersed" multiplies prior draws."""
    map: MAPSettings = MAPSettings()
    """Used if `start` is "map"."""
    vi: VIConfig = VIConfig()
    """Used if `start` is "vi"."""
    chain_method: ChainMethod = "vectorized"
    """All in lockstep in one compiled call, one after the other, or one thread (or device) each."""
    reports: PositiveInt = 20
    """The number of progress reports and checkpoints in the whole fit."""

    @property
    def growing_key(self) -> str | None:
        """More samples, after the same warm-up."""
        return "samples"

    @property
    def earlier_run(self) -> str | None:
        """The run in `start_from`."""
        return self.start_from

    @property
    def first_search(self) -> tuple[str, MethodSettings] | None:
        """A search for modes or a fit of guides, if the chains start from one of them."""
        match self.start:
            case "map":
                return "map", self.map
            case "vi":
                return "vi", self.vi
            case _:
                return None

    @property
    def parameter_copies(self) -> dict[str, int]:
        """One for each chain."""
        return {"chains": self.chains}

    @property
    def dense_mass_matrix(self) -> bool:
        """Whether the mass matrix is a full matrix, parameters × parameters."""
        return False

    @property
    def largest_tree_depth(self) -> int | None:
        """The depth at which a trajectory is cut off; None if trajectories are not trees."""
        return None


class HMCConfig(ChainSettings):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps (`methods/hmc.py`)."""

    kind: Literal["hmc"] = "hmc"
    step_size: PositiveFloat = 0.1
    """The first step size; without adaptation, the step size of all steps."""
    leapfrogs: Counted = 10
    """The number of leapfrog steps of a trajectory."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The step size of a trajectory is the adapted one times a draw from [1 − jitter, 1], which avoids resonances."""
    adaptation: Adaptation = "dual_averaging"
    """How the step size adapts in the warm-up; with "none" the mass matrix stays the identity too."""
    target_acceptance: Acceptance = 0.8
    """The mean acceptance probability that the step size adapts to."""
    mass_matrix: MassMatrix = "diagonal"
    """The form of the mass matrix that adapts in the warm-up; "unit" stays the identity."""

    @property
    def dense_mass_matrix(self) -> bool:
        """Whether `mass_matrix` is "dense"."""
        return self.mass_matrix == "dense"


class NUTSConfig(ChainSettings):
    """The No-U-Turn sampler on the whole training set (`methods/nuts.py`)."""

    kind: Literal["nuts"] = "nuts"
    step_size: PositiveFloat = 0.1
    """The first step size."""
    adaptation: Adaptation = "dual_averaging"
    """How the step size adapts in the warm-up; with "none" the mass matrix stays the identity too."""
    target_acceptance: Acceptance = 0.8
    """The mean acceptance probability that the step size adapts to."""
    max_tree_depth: Annotated[int, Field(ge=1, le=15)] = 10
    """A trajectory has at most 2 to this power leapfrog steps."""
    mass_matrix: MassMatrix = "diagonal"
    """The form of the mass matrix that adapts in the warm-up; "unit" stays the identity."""

    @property
    def dense_mass_matrix(self) -> bool:
        """Whether `mass_matrix` is "dense"."""
        return self.mass_matrix == "dense"

    @property
    def largest_tree_depth(self) -> int | None:
        """`max_tree_depth`."""
        return self.max_tree_depth


class ChEESConfig(ChainSettings):
    """Many chains in lockstep with one adapted trajectory length (`methods/chees.py`; Hoffman et al., 2021)."""

    kind: Literal["chees"] = "chees"
    chains: Annotated[int, Field(ge=4)] = 16
    """The number of chains."""
    step_size: PositiveFloat = 0.1
    """The first step size."""
    target_acceptance: Acceptance = 0.8
    """The mean acceptance probability that the step size adapts to."""
    max_leapfrogs: Counted = 1_000
    """The largest number of leapfrog steps in a trajectory."""
    mass_matrix: Literal["diagonal", "unit"] = "diagonal"
    """The form of the mass matrix that adapts in the warm-up; "unit" stays the identity."""
    # Narrower than in the base class. This is safe, because sections are frozen.
    chain_method: Literal["vectorized", "parallel"] = "vectorized"  # pyright: ignore[reportIncompatibleVariableOverride]
    """After the warm-up: all chains in lockstep, or groups of chains, one thread (or device) each."""
    groups: PositiveInt = 2
    """The number of groups, if `chain_method` is "parallel"."""

    @model_validator(mode="after")
    def _groups_are_of_one_size(self) -> ChEESConfig:
        if self.chain_method == "parallel" and self.chains % self.groups:
            raise ValueError(f"groups must divide chains, {self.chains}, found {self.groups}")
        return self


class MILEConfig(ChainSettings):
    """Warm-started members, each followed by microcanonical Langevin (`methods/mile.py`; Sommer et al., 2025)."""

    kind: Literal["mile"] = "mile"
    chains: Annotated[int, Field(ge=2)] = 8
    """The number of chains."""
    warmup: PositiveInt = 10_000
    """Transitions of each chain before the first sample, in which the sampler adapts."""
    samples: PositiveInt = 1_000
    thin: PositiveInt = 10
    start: Literal["network", "prior", "overdispersed", "map", "vi", "run"] = "map"
    energy_variance: PositiveFloat = 5e-5
    """The target for the energy variance of a step, per dimension; a smaller one means less bias and more steps."""
    mass_matrix: Literal["diagonal", "unit"] = "diagonal"
    """The form of the mass matrix that adapts in the warm-up; "unit" stays the identity."""
    chain_method: ChainMethod = "parallel"
    """All in lockstep in one compiled call, one after the other, or one thread (or device) each."""


AnyMethod = MAPConfig | EnsembleConfig | VIConfig | LaplaceConfig | HMCConfig | NUTSConfig | ChEESConfig | MILEConfig
MethodConfig = Annotated[AnyMethod, Field(discriminator="kind")]
METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    settings.model_fields["kind"].default: settings for settings in get_args(AnyMethod)
}
"""Each method's settings, by its kind."""
