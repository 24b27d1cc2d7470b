"""AdamW with BERT's settings: warm-up, linear decay, no weight decay on biases and norms."""

from typing import Any

import keras
from keras import ops

from pipeline.distill.distiller import Distiller
from pipeline.distill.settings import DistillConfig


class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly to its peak and falls linearly to zero.

    Of n updates, w are the warm-up and u are done. The next update's rate is
    peak · (u + 1) / w while u < w, then peak · (n − u) / (n − w).

    Args:
        peak: the highest rate.
        warmup_steps: w.
        num_train_steps: n.
        steps_per_update: the number of optimizer calls that make one update. Keras counts
            calls.
    """

    def __init__(
        self, peak: float, *, warmup_steps: int, num_train_steps: int, steps_per_update: int = 1
    ) -> None:
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.num_train_steps = num_train_steps
        self.steps_per_update = steps_per_update

    def __call__(self, step: Any) -> Any:
        """Returns the rate of the update that call number `step` belongs to."""
        update = ops.floor_divide(ops.cast(step, "int32"), self.steps_per_update)
        update = ops.cast(update, "float32")
        rising = (update + 1.0) / max(1, self.warmup_steps)
        falling = (self.num_train_steps - update) / max(1, self.num_train_steps - self.warmup_steps)
        return self.peak * ops.maximum(ops.where(update < self.warmup_steps, rising, falling), 0.0)

    @classmethod
    def of(cls, config: DistillConfig, *, steps_per_update: int = 1) -> "WarmupLinearDecay":
        """Returns the schedule of a run."""
        steps = {"warmup_steps": config.warmup_steps, "num_train_steps": config.num_train_steps}
        return cls(config.learning_rate, **steps, steps_per_update=steps_per_update)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dict(vars(self))


def build_optimizer(
    variables: list[keras.Variable],
    schedule: WarmupLinearDecay,
    *,
    weight_decay: float,
    clip_norm: float,
) -> keras.optimizers.Optimizer:
    """Returns AdamW for a model's variables.

    Weight decay is decoupled (Loshchilov and Hutter, 2019). It is not applied to vectors,
    which are biases and the parameters of layer norms (Devlin et al., 2019). Gradients
    are clipped by their global norm; a `clip_norm` of 0 clips nothing.
    """
    count = schedule.steps_per_update
    optimizer = keras.optimizers.AdamW(
        learning_rate=schedule,
        weight_decay=weight_decay,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        global_clipnorm=clip_norm or None,
        gradient_accumulation_steps=count if count > 1 else None,
    )
    vectors = [variable for variable in variables if len(variable.shape) < 2]
    optimizer.exclude_from_weight_decay(var_list=vectors)
    optimizer.build(variables)
    return optimizer


def compile_distiller(
    distiller: Distiller, config: DistillConfig, *, steps_per_update: int = 1
) -> None:
    """Compiles a distiller with its optimizer, with XLA only on JAX."""
    optimizer = build_optimizer(
        distiller.trainable_variables,
        WarmupLinearDecay.of(config, steps_per_update=steps_per_update),
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    # JAX always compiles with XLA. On a CPU, TensorFlow is faster without XLA.
    distiller.compile(optimizer=optimizer, jit_compile=keras.config.backend() == "jax")
