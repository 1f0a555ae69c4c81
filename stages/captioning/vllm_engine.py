"""Captions from vLLM's engine inside the workers: one engine a worker, many clips under way in it.

For a cluster whose GPUs are the pipeline's own. The engine batches what the clips under way ask,
and computes the beginning that a clip's requests share once.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from curation.stage import Needs, PlanError, RunContext
from curation.weights import model_folder
from stages.captioning.conversation import Request
from stages.captioning.transformers_model import template_image
from stages.captioning.vlm import Said, Vlm


@dataclass
class Vllm(Vlm):
    """AsyncLLM in a Ray actor."""

    gpus: Annotated[int, Ge(1)] = 1  # of one engine, the model split over them
    clips_in_flight: Annotated[int, Ge(1)] = 128  # of one engine
    engine: dict[str, Any] = field(default_factory=dict)  # more of vLLM's EngineArgs, by their name

    captioner: ClassVar[str] = "vllm"

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, gpus=self.gpus, max_concurrency=self.clips_in_flight)

    def check(self) -> None:
        super().check()
        model_folder(self.model, self.revision, "caption.vllm.model")
        if importlib.util.find_spec("vllm") is None:
            raise PlanError("caption.vllm: the package is not there; pip install -e '.[vllm]'")

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        from transformers import AutoProcessor
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        folder = str(model_folder(self.model, self.revision, "caption.vllm.model"))
        self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        args = {"model": folder, "tensor_parallel_size": self.gpus, "enable_prefix_caching": True}
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**args | self.engine),
            usage_context=UsageContext.OPENAI_API_SERVER,  # batches as large as `vllm serve` makes
        )

    async def say(self, request: Request) -> Said:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await self._generate(request)
        except EngineDeadError:
            # The worker is of no more use. Its end is noticed, and its clips go to another one.
            os._exit(1)

    async def _generate(self, request: Request) -> Said:
        chat, pictures = request.as_chat(template_image), request.pictures
        prompt: Any = {
            "prompt": self._processor.apply_chat_template(chat, add_generation_prompt=True)
        }
        if pictures:
            prompt["multi_modal_data"] = {"image": [picture.pil for picture in pictures]}
            prompt["multi_modal_uuids"] = {"image": [picture.sha256 for picture in pictures]}
        renderer = self._engine.renderer  # works in a thread: other requests go on meanwhile
        params = renderer.default_chat_tok_params  # the template has written the special tokens
        [inputs] = await renderer.render_cmpl_async([prompt], params)
        answers = self._engine.generate(inputs, self._sampling(request), uuid.uuid4().hex)
        [final] = [answer async for answer in answers]
        [output] = final.outputs
        return Said(output.text, len(final.prompt_token_ids or ()), len(output.token_ids))

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
