"""The class that vLLM loads: every hook of its connector interface in one line, delegated to one of the two halves.

vLLM makes it twice, beside the scheduler and beside each rank's KV tensors, perhaps in different processes; each
makes its own half. In a request's `kv_transfer_params`, `{"export": True}` asks for a ticket with the last output,
`{"ticket": bytes}` brings one, perhaps with `"after": id` of the request that prefetches the same prompt, and
`{"follow": (source, epoch, attempt id)}` is such a prefetch of a prompt that another engine computes at this time.
"""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.v1.outputs import KVConnectorOutput

from kv_transfer.connector.layout import require_supported
from kv_transfer.connector.messages import StepOrders
from kv_transfer.connector.scheduler_half import SchedulerHalf
from kv_transfer.connector.worker_half import WorkerHalf
from kv_transfer.engine_settings import ConnectorSettings


class BatonConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        require_supported(vllm_config, kv_cache_config)
        settings = ConnectorSettings.from_extra_config(self._kv_transfer_config.kv_connector_extra_config)
        self.scheduler: SchedulerHalf
        self.worker: WorkerHalf
        if role is KVConnectorRole.SCHEDULER:
            self.scheduler = SchedulerHalf(vllm_config, settings)
        else:
            self.worker = WorkerHalf(vllm_config, settings, kv_cache_config.num_blocks)

    # Beside the scheduler, in the order of their calls.

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self.scheduler.bind_pool(gpu_block_pool)

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        self.scheduler.start(metadata)

    def on_new_request(self, request: Any) -> None:
        self.scheduler.new_request(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self.scheduler.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self.scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        state = scheduler_output.kv_connector_block_state
        return self.scheduler.step_orders(scheduler_output.num_scheduled_tokens, state.resolve_block_ids)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self.scheduler.step_done(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        # False: the engine forgets the request; the pinned blocks are ours alone, so waiting for a reader costs no
        # steps.
        return False, self.scheduler.finished(request, block_ids)

    def has_pending_push_work(self) -> bool:
        return self.scheduler.has_work

    # Beside the tensors, in the order of their calls.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self.worker.register(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata:
        return self.worker.endpoint

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, StepOrders)
        self.worker.before_forward(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self.worker.after_forward_launch()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        return self.worker.results(finished_req_ids)

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self.worker.report()

    def shutdown(self) -> None:
        half = self.scheduler if self.role is KVConnectorRole.SCHEDULER else self.worker
        half.close()

    # Layer by layer nothing happens: blocks move whole, before or after the forward pass.

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...
