"""DeepSpeed's ZeRO-3 around the frozen decoder layers, for bfloat16 bases that wait in host memory or on a drive. In: layers as loaded.

Of DeepSpeed there is the splitting, gathering and offloading of weights, and nothing of its engine: the adapter, whole on every rank, is
trained by the same course as any other way (docs/decisions/zero-without-its-engine.md). DeepSpeed is an extra.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

INSTALL = "DS_BUILD_OPS=0 pip install --no-deps deepspeed==0.19.8 einops hjson msgpack ninja py-cpuinfo"
PERSISTENT = 100_000  # weights of a parameter below which it stays whole: norms (DeepSpeed's own default)


class Zero:
    """The weights of all decoder layers, split by DeepSpeed; what `Shards` is for fsdp."""

    def __init__(self, device: str, dtype: "torch.dtype", waits: str) -> None:
        """Sets DeepSpeed up over the ranks that have met.

        Args:
            device: cpu or cuda.
            dtype: of the weights.
            waits: runtime.zero_offload: gpu | host | a folder of an NVMe drive.

        Raises:
            UserError: DeepSpeed is not installed, or what it needs for a drive cannot be compiled.
        """
        os.environ.setdefault("DS_ACCELERATOR", device)
        if device == "cuda":
            os.environ["LOCAL_RANK"] = "0"  # by which DeepSpeed takes a GPU, and each rank sees its own alone
        try:
            import deepspeed
        except ImportError as error:
            raise UserError(f"train.parallel is zero3, which needs DeepSpeed ({error}); run: {INSTALL}, or take fsdp") from None
        import logging

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if device == "cpu":  # else it compiles an all-reduce of its own at the first start, which takes minutes
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._dtype = dtype
        self._remote = {"gpu": None, "host": "cpu"}.get(waits, "nvme")
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if self._remote == "nvme":
            try:
                AsyncIOBuilder().load(verbose=False)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"runtime.zero_offload is {waits}, and to read a drive DeepSpeed compiles its async_io, which failed here "
                    f"({str(error).splitlines()[0]}); it needs a C++ compiler, ninja and libaio's headers (Debian and Ubuntu: "
                    f"libaio-dev), or set runtime.zero_offload: host"
                ) from error
        deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
        offload: dict[str, Any] = {} if self._remote is None else {"device": self._remote, "pin_memory": device == "cuda"}
        if self._remote == "nvme":
            offload["nvme_path"] = waits
        stage = {"stage": 3, **({"offload_param": offload} if offload else {})}
        self._config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": stage}
        self._in_pass = False

    def take(self, number: int, layer: "torch.nn.Module") -> None:
        """Takes a layer's weights, of which this rank keeps its part.

        Args:
            number: of the layer.
            layer: loaded, and without an adapter.
        """
        import deepspeed

        deepspeed.zero.Init(module=layer, config_dict_or_path=self._config, dtype=self._dtype, remote_device=self._remote)

    def watch(self, model: "PreTrainedModel", layers: "Sequence[torch.nn.Module]") -> None:
        """Has the layers gathered before they are computed, forwards and backwards.

        Args:
            model: the base, without an adapter.
            layers: its decoder layers, all taken.
        """
        import torch
        from deepspeed.runtime.config import DeepSpeedConfig
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

        config: Any = DeepSpeedConfig(self._config)
        self._model = model
        self._hooks = DeepSpeedZeRoOffload(
            torch.nn.ModuleList(layers),
            timers=None,
            ds_config=config,
            overlap_comm=model.device.type == "cuda",
            param_persistence_threshold=PERSISTENT,
            offload_param_config=config.zero_config.offload_param,
        )
        # the list of layers is never called, and the embedding is once in a pass, also where layers are computed again
        model.get_input_embeddings().register_forward_pre_hook(self._start)

    def _start(self, *_: Any) -> None:
        self._in_pass = True
        self._hooks.get_param_coordinator().reset_step()

    def begin(self) -> None:
        """A pass may begin."""
        self._in_pass = False

    def finish(self, backward: bool) -> None:
        """Takes part in what the other ranks gather while this one has no pass: a pass of one token whose loss is zero.

        Args:
            backward: whether the pass has one.

        Raises:
            UserError: the memory ran out within a pass, and what DeepSpeed has gathered of it is known to this rank alone.
        """
        import torch

        if self._in_pass:
            raise UserError(
                "the memory ran out within a pass, which train.parallel zero3 cannot make smaller while it runs; lower "
                "train.micro_batch_tokens and start again: it goes on from the last checkpoint"
            )
        out = self._model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self._model.device), use_cache=False)
        if backward:
            (out.logits.float().sum() * 0.0).backward()
        self._in_pass = False
