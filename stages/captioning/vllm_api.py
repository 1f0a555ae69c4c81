"""What `vllm_engine` uses of vLLM's Python API, checked before an engine starts.

vLLM renames parts of it between minor versions; a missing one is then one clear line instead of an
AttributeError in each worker.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

TESTED_VERSION = "0.26.0"

# module:name -> parameters, or attributes where the name is an enum
USED = {
    "vllm:SamplingParams": (
        *("max_tokens", "temperature", "seed", "structured_outputs", "output_kind"),
    ),
    "vllm.sampling_params:StructuredOutputsParams": ("json",),
    "vllm.sampling_params:RequestOutputKind": ("FINAL_ONLY",),
    "vllm.engine.arg_utils:AsyncEngineArgs": (
        *("model", "tensor_parallel_size", "enable_prefix_caching"),
    ),
    "vllm.usage.usage_lib:UsageContext": ("OPENAI_API_SERVER",),
    "vllm.v1.engine.async_llm:AsyncLLM.from_engine_args": ("engine_args", "usage_context"),
    "vllm.v1.engine.async_llm:AsyncLLM.generate": ("prompt", "sampling_params", "request_id"),
    "vllm.v1.engine.exceptions:EngineDeadError": (),
    "vllm.renderers.base:BaseRenderer.render_cmpl_async": ("prompts", "tok_params"),
    "vllm.renderers.base:BaseRenderer.default_chat_tok_params": (),
    "vllm.outputs:CompletionOutput": ("text", "token_ids", "finish_reason"),
    "vllm.outputs:RequestOutput": ("prompt_token_ids", "outputs"),
}


def missing_names(used: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yields what of `used` the installed packages do not have, as a user would search for it."""
    for path, parts in used.items():
        module, _, names = path.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for name in names.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError):
            yield f"{module}.{names}"
            continue
        if not parts:
            continue
        try:
            known = set(inspect.signature(found).parameters)
        except (TypeError, ValueError):
            known = set()
        for part in parts:
            if part not in known and not hasattr(found, part):
                yield f"{part} of {module}.{names}"
