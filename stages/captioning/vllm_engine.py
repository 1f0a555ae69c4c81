"""Captions from vLLM's engine inside the workers: one engine per worker, many clips in flight.

For a cluster whose GPUs belong to the pipeline. The engine batches the requests of the clips in
flight, and computes the prefix that a clip's requests share once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from curation.stage import Needs, PlanError, RunContext
from curation.weights import locate_model
from stages.captioning.conversation import Completion, Request
from stages.captioning.transformers_model import template_image_part
from stages.captioning.vllm_api import TESTED_VERSION, USED, missing_names
from stages.captioning.vlm import VlmCaptioner


@dataclass
class VllmCaptioner(VlmCaptioner):
    """AsyncLLM in a Ray actor."""

    gpus: Annotated[int, Ge(1)] = 1  # GPUs of one engine (tensor parallel)
    max_clips_in_flight: Annotated[int, Ge(1)] = 128  # per engine
    engine_args: dict[str, Any] = field(default_factory=dict)  # further EngineArgs of vLLM

    captioner: ClassVar[str] = "vllm"

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, gpus=self.gpus, max_concurrency=self.max_clips_in_flight)

    def check(self) -> None:
        super().check()
        locate_model(self.model, self.revision, "caption.vllm.model")
        if importlib.util.find_spec("vllm") is None:
            raise PlanError("caption.vllm: the package is missing; pip install -e '.[vllm]'")
        check_vllm()

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        check_vllm()
        from transformers import AutoProcessor
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        folder = str(locate_model(self.model, self.revision, "caption.vllm.model"))
        self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        args = {"model": folder, "tensor_parallel_size": self.gpus, "enable_prefix_caching": True}
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**args | self.engine_args),
            usage_context=UsageContext.OPENAI_API_SERVER,  # the batch sizes of `vllm serve`
        )

    async def complete(self, request: Request) -> Completion:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await self._generate(request)
        except EngineDeadError:
            os._exit(1)  # the runner replaces this worker and retries its clips

    async def _generate(self, request: Request) -> Completion:
        chat, images = request.to_chat(template_image_part), request.images
        prompt: Any = {
            "prompt": self._processor.apply_chat_template(chat, add_generation_prompt=True)
        }
        if images:
            prompt["multi_modal_data"] = {"image": [image.pil for image in images]}
            prompt["multi_modal_uuids"] = {"image": [image.sha256 for image in images]}
        renderer = self._engine.renderer  # works in a thread: other requests continue
        params = renderer.default_chat_tok_params  # the template contains the special tokens
        [inputs] = await renderer.render_cmpl_async([prompt], params)
        outputs = self._engine.generate(inputs, self._sampling(request), uuid.uuid4().hex)
        [final] = [output async for output in outputs]
        [output] = final.outputs
        return Completion(
            output.text,
            len(final.prompt_token_ids or ()),
            len(output.token_ids),
            output.finish_reason,
        )

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            structured_outputs=StructuredOutputsParams(json=request.schema),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def check_vllm() -> None:
    """Raises PlanError where the installed vLLM lacks what is used of its API."""
    if missing := list(missing_names(USED)):
        raise PlanError(
            f"caption.vllm: vLLM {importlib.metadata.version('vllm')} has no "
            f"{', no '.join(missing)}; tested is {TESTED_VERSION}: pip install "
            f"'vllm=={TESTED_VERSION}', or caption by a server (caption.openai.url)"
        )
