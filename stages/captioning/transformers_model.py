"""Captions from a transformers model in one process: for small machines and tests.

One request at a time and no prefix cache: on a GPU a server or `vllm` is many times faster.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from curation.stage import Needs, PlanError, RunContext
from curation.weights import locate_model
from stages.captioning.conversation import Completion, PromptImage, Request
from stages.captioning.vlm import VlmCaptioner


@dataclass
class TransformersCaptioner(VlmCaptioner):
    """AutoModelForImageTextToText, on a GPU or the CPU."""

    gpus: Annotated[float, Ge(0)] = 0.0  # share of a GPU that the process takes; 0: the CPU

    captioner: ClassVar[str] = "transformers"

    @property
    def needs(self) -> Needs:
        return Needs(cpus=1, gpus=self.gpus, max_workers=1)

    def check(self) -> None:
        super().check()
        locate_model(self.model, self.revision, "caption.transformers.model")
        if importlib.util.find_spec("transformers") is None:
            raise PlanError(
                "caption.transformers: the package is missing; pip install -e '.[captions]'"
            )

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        import torch

        from curation.torchvision_fix import fix_torchvision

        fix_torchvision()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = locate_model(self.model, self.revision, "caption.transformers.model")
        self._device = "cuda" if self.gpus else "cpu"
        dtype = torch.bfloat16 if self.gpus else torch.float32
        self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        )
        self._model = model.to(self._device).eval()

    async def complete(self, request: Request) -> Completion:
        import torch

        chat = request.to_chat(template_image_part)
        prompt = self._processor.apply_chat_template(chat, add_generation_prompt=True)
        images = [image.pil for image in request.images] or None
        inputs = self._processor(text=[prompt], images=images, return_tensors="pt")
        inputs = inputs.to(self._device, self._model.dtype)
        sampling = (
            {"do_sample": True, "temperature": request.temperature}
            if request.temperature
            else {"do_sample": False}
        )
        torch.manual_seed(request.seed)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=request.max_tokens, **sampling)
        start = inputs["input_ids"].shape[1]
        text = self._processor.decode(tokens[0, start:], skip_special_tokens=True)
        count = tokens.shape[1] - start
        end = "length" if count >= request.max_tokens else "stop"
        return Completion(text, start, count, end)


def template_image_part(_: PromptImage) -> dict[str, Any]:
    """The placeholder of an image in a model's chat template."""
    return {"type": "image"}
