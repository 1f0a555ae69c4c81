"""Checks of a text's form: whether it is prose about a clip at all. Pure: text in, reason out.

They name kinds of faults, not sentences: a caption is third-person prose of whole sentences, made
of letters, digits and common punctuation. What a page, table, shell or model could act on fails.
The phrases are English; the characters and the repetition are of any language.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from curation.texts import sanitize_text, split_words

MIN_REPEATED_SENTENCE_WORDS = 4  # a shorter sentence may occur twice
MAX_WORD_RUN = 3  # of one word in a row
MAX_PHRASE_RUN = 2  # of a phrase in a row; of LONG_PHRASE_WORDS and more: one
LONG_PHRASE_WORDS = 15
MAX_PHRASE_WORDS = 40
NGRAM_WORDS = 5
MAX_REPEATED_NGRAM_SHARE = 0.4  # of the words: in 5-grams that occurred before
# of a text of MIN_JUDGED_WORDS and more; English prose: 0.55 to 0.85
MIN_DISTINCT_WORD_SHARE = 0.35
MIN_JUDGED_WORDS = 30

_QUOTATION = re.compile(
    r"\"[^\"]{0,300}\"|“[^”]{0,300}”|(?<!\w)'[^']{1,300}'(?!\w)|‘[^’]{0,300}’(?!\w)"
)


def remove_quotations(text: str) -> str:
    """Returns the text with a blank in place of each quotation."""
    return _QUOTATION.sub(" ", text)


def match_reason(name: str, pattern: re.Pattern[str], text: str) -> str | None:
    """`NAME: “what matched”`, harmless wherever it is shown; None without a match."""
    found = pattern.search(text)
    return f"{name}: “{sanitize_text(found[0], 60)}”" if found else None


_CONTROL_TOKEN = re.compile(
    r"<[|｜][^<>]{0,60}[|｜]>|<\|\w+|\w+\|>"  # ChatML, Llama 3, Harmony, DeepSeek
    r"|\[/?(?:INST|SYS(?:TEM)?(?:_PROMPT)?|IMG|IMAGE|VIDEO|PAD|CLS|SEP|UNK|MASK|EOS|BOS"
    r"|AVAILABLE_TOOLS"
    r"|TOOL_CALLS|IMG_(?:BREAK|END))\]"
    r"|<</?SYS>>|</?s>|<0x[0-9A-F]{2}>|<extra_id_\d+>"
    r"|</?(?:image|img|video|audio|frame|pad|unk|eos|bos|mask|sep|cls|fim_\w+|tool_call|answer"
    r"|box|ref"
    r"|point|caption|output|response|start_of_\w+|end_of_\w+|(?:vision|image|video|im)_\w+"
    r"|begin_of_\w+|\w+_placeholder|fake_token_\w+|global-img|row_\d+_col_\d+)>"
    r"|\b(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id)\b"
    r"|(?-i:[ĠĊ▁])|#{2,}\s*(?:human|assistant|user|system|instruction|input|response)\b"
    r"|(?:^|[\n.!?]\s*)(?:human|assistant|user|system|ai|bot|gpt)\s*:",
    re.IGNORECASE,
)


def control_tokens(answer: str) -> str | None:
    """Tokens of a chat template or a tokenizer, and roles, in a model's whole answer."""
    return match_reason("control tokens", _CONTROL_TOKEN, answer)


_REASONING_TAG = re.compile(
    r"(?i:[<\[(◁]\s*/?\s*(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad"
    r"|inner_monologue|plan(?:ning)?)\s*[>\])▷])"
    r"|^\W*(?:analysis|commentary)(?:\s*:|[A-Z])|assistant(?:final|analysis|commentary)"
    r"|\bchannel\b\W{0,3}(?:analysis|final|commentary)\b|^\W*final[A-Z]",
)
_REASONING = re.compile(
    r"\blet(?:'|’)?s (?:think|see|look|analy[sz]e|break|describe|start|write|draft|go|try"
    r"|consider|focus"
    r"|count|check)\b|\blet me\b"
    r"|^\W*(?:ok(?:ay)?|alright|all right|hm+|wait)\s*[,.!:…]"
    r"|\bthe (?:user|prompt|question|task|instructions?|system message)\b[^.]{0,20}\b(?:wants?"
    r"|ask(?:s|ed)?"
    r"|needs?|requests?|requires?|provided|given|mentions?|says?|is to|are to)\b"
    r"|\bwe (?:need|have|want|should|must|are (?:asked|given)|can conclude)\b(?: to)?"
    r"|\b(?:thought|thinking) process\b|\bchain of thought\b|\bstep[- ]by[- ]step\b"
    r"|\bstep \d+\s*[:.]"
    r"|\b(?:final|my|the) (?:answer|response|output|description) (?:is|should|must|will|would)\b"
    r"|\bfinal answer\b|\bword count\b|\b\d+ (?:to|-|–) \d+ words\b|\bmust (?:avoid|not mention"
    r"|write)\b"
    r"|^\W*(?:thoughts?|thinking|reasoning|analysis|plan|draft)\s*:"
    r"|^\W*first(?:ly)?,? (?:i|we|the (?:user|task)|looking)\b|\blooking at the (?:key ?)?frames\b",
    re.IGNORECASE,
)


def reasoning(text: str) -> str | None:
    """The model's thoughts about its task, before a description or instead of one."""
    plain = remove_quotations(text)
    return reasoning_tags(text) or match_reason("reasoning", _REASONING, plain)


def reasoning_tags(answer: str) -> str | None:
    """Marks of a reasoning block or channel, also a lone closing one, in the whole answer."""
    return match_reason("reasoning", _REASONING_TAG, answer)


_ESCAPE = re.compile(
    r"\\(?:[nrtbfv0\"'/]|u[0-9a-fA-F]{2,4}|x[0-9a-fA-F]{2}|N\{)"  # \n \u00e9 \xe9 \"
    r"|(?:\b|(?<=[a-z]))[uU](?:00[0-9a-f]{2}|20[0-9a-f][0-9a-f]|\+[0-9A-F]{4})(?![0-9])"  # u00e9
    r"|&(?:[a-zA-Z][a-zA-Z0-9]{1,20}|#\d{1,7}|#x[0-9a-fA-F]{1,6});"
    r"|%[0-9A-Fa-f]{2}|\b=[0-9A-F]{2}\b|\\\\"
    r"|[ÃÂ][\u0080-\u00bf]|â(?:€[\u0080-\u2122œž]?|\u0080)"  # UTF-8 read as Latin-1
)


def escapes(text: str) -> str | None:
    """Escape sequences written out as letters, and text in a wrong encoding."""
    return match_reason("escapes", _ESCAPE, text)


# In any place, also inside quotations.
_ACTIVE = re.compile(
    r"<\s*[!/?a-z][^<>]{0,80}>?|-->|[{}\\|`]|\]\(|\]\[|\]:\s|[=@+]\s*[A-Za-z_]{1,30}\s*\("
    r"|\b(?:javascript|vbscript|data|file|mailto|blob|ftps?|https?|s3|ssh)\s*:\S|://"
    r"|\$[({]|&&|\$[A-Z_]{2,}|[;&]\s*(?:rm|curl|wget|sudo|cat|bash|sh|nc|python)\s"
    r"|\b(?:rm\s+-\w*[rf]|sudo\s+\w+|drop\s+table|chmod\s|curl\s+-|wget\s+-)"
    r"|(?:^|[\s\"'(“‘])(?:\.{0,2}|~)/[\w.]|\.\./|\b[a-z]:/"  # paths
    r"|\$[^\s$][^$]{0,80}[^\s$]\$|\$\$"  # TeX formulas
    r"|(?:^|\n)\s*(?:[=+@\-–—|>#•*%_~]|\d{1,2}[.)]\s|[a-z][.)]\s)"  # formulas, lists, tables
    r"|\*\*|__|~~|(?:^|\s)\*\S[^*]*\*|\n\s*(?:={3,}|-{3,})",
    re.IGNORECASE,
)
# A sign may show these; prose does not have them.
_SYMBOLS = re.compile(
    r"[\[\]<>^=_@*#~]|\b\d{4}-\d\d-\d\d\b|\bwww\.\w|\b[\w-]+\.(?:com|org|net|io|html?|jpe?g|png|mp4)\b"
)


def markup(text: str) -> str | None:
    """Markup, formulas, addresses, paths and commands: what a page, table or shell may act on."""
    return match_reason("markup", _ACTIVE, text) or match_reason(
        "markup", _SYMBOLS, remove_quotations(text)
    )


_SENTENCE_END = re.compile(r"[.!?…。！？।؟۔]['\"”’»)\]]*\s*$")
_DANGLING = re.compile(
    r"(?:[,;:(\[“‘&/\-–—]|\b(?:and|or|but|nor|the|an?|of|with|while|as|than|its|their|into|which))"
    r"\s*(?:…|\.{3})?\s*$",
    re.IGNORECASE,
)


def cut_off(text: str, is_complete: bool) -> str | None:
    """The text ends in the middle of a sentence.

    is_complete: the server stated that the model ended its answer; then a full stop may be missing.
    """
    end = f"cut off: ends in “{sanitize_text(text[-30:], 40)}”"
    if _DANGLING.search(text) or text.rstrip().endswith(("...", "…")):
        return end
    has_open_quotation = text.count("“") > text.count("”") or text.count("(") > text.count(")")
    if has_open_quotation or not (is_complete or _SENTENCE_END.search(text)):
        return end
    return None


_CHARACTER_LOOP = re.compile(r"(\w)\1{7,}|((?=[^\n]{0,59}\w)[^\n]{2,60}?)\2{4,}")


def repetition(text: str) -> str | None:
    """Sentences, phrases or words over and over."""
    for sentence, times in Counter(
        tuple(split_words(part)) for part in re.split(r"[.!?;。！？\n]+", text)
    ).items():
        if times > 1 and len(sentence) >= MIN_REPEATED_SENTENCE_WORDS:
            return f"repetition: a sentence {times} times"
    words = split_words(text)
    for length in range(1, min(MAX_PHRASE_WORDS, len(words) // 2) + 1):
        limit = MAX_WORD_RUN if length == 1 else MAX_PHRASE_RUN if length < LONG_PHRASE_WORDS else 1
        if (times := _longest_run(words, length)) > limit:
            return f"repetition: {length} words {times} times in a row"
    share = _repeated_ngram_share(words)
    if share > MAX_REPEATED_NGRAM_SHARE:
        return f"repetition: {share:.0%} of the words are in repeated phrases"
    if len(words) >= MIN_JUDGED_WORDS and len(set(words)) < MIN_DISTINCT_WORD_SHARE * len(words):
        return f"repetition: {len(set(words))} different words of {len(words)}"
    return "repetition: of characters" if _CHARACTER_LOOP.search(text) else None


def _longest_run(words: Sequence[str], length: int) -> int:
    """How often a phrase of `length` words occurs in a row at most."""
    longest = run = 0
    for word, later in zip(words, words[length:], strict=False):
        run = run + 1 if word == later else 0
        longest = max(longest, run)
    return longest // length + 1


def _repeated_ngram_share(words: Sequence[str]) -> float:
    """Share of the words in NGRAM_WORDS-grams that occurred before in the text.

    After the duplicate n-grams of MassiveText's repetition filter (arXiv:2112.11446, table A1).
    """
    known: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for at in range(len(words) - NGRAM_WORDS + 1):
        gram = tuple(words[at : at + NGRAM_WORDS])
        if gram in known:
            covered.update(range(at, at + NGRAM_WORDS))
        known.add(gram)
    return len(covered) / max(1, len(words))


_REFUSAL = re.compile(
    r"\b(?:cannot|can'?t|can not|could not|couldn'?t|unable to|not able to|(?:not|im)possible to"
    r"|not permitted to|not allowed to|declines? to|refuses? to)\s+(?:\w+ly\s+)?(?:be\s+)?"
    r"(?:(?:describ|provid|assist|help\b(?! \w+ing)|compl(?:y|ied)|analy[sz]|generat|fulfil"
    r"|interpret"
    r"|determin|identif(?:y|ied) (?:real|people|individuals|who))\w*"
    r"|(?:view|see|access|open|process|load|display|read|watch)\w*\s+(?:\w+ ){0,2}"
    r"(?:images?|videos?|frames?|pictures?|clips?|attachments?|footage|files?|links?|urls?"
    r"|content|them"
    r"|visuals?)\b)"
    r"|\b(?:please|kindly)\s+(?:re-?)?(?:provide|upload|share|attach|send|describe|clarify"
    r"|supply|submit"
    r"|try|give|specify|include|note|let|check|refer)\b"
    r"|\bno (?:\w+ )?(?:images?|videos?|frames?|pictures?|clips?|attachments?|footage|files?"
    r"|content"
    r"|description|caption|visuals?)\b[^.]{0,30}"
    r"\b(?:attached|provided|included|uploaded|given|available|shared|received|supplied|found"
    r"|loaded"
    r"|visible to|detected|possible)\b"
    r"|\b(?:images?|videos?|frames?|pictures?|clips?|attachments?|footage|files?|visuals?)\b"
    r" (?:\w+ )?(?:is|are|was|were|has|have|did|do|does|could|can)"
    r"(?:n'?t| not|not)\s+(?:been )?(?:\w+ )?(?:attached|provided|included|uploaded|available"
    r"|shared"
    r"|received|supplied|load\w*|accessible|come through|show up|display\w*|open\w*|process\w*)"
    r"|\bas an? (?:ai|artificial|large|language|multimodal|vision|text)\b|\blanguage model\b"
    r"|\b(?:my|our|the) (?:guidelines|policy|policies|programming|training data|knowledge cutoff)\b"
    r"|\b(?:content|usage|safety|privacy) polic(?:y|ies)\b|\bapolog(?:y|ies|i[sz]e\w*)\b"
    r"|^\W*(?:sorry|unfortunately|regrettably|not applicable|no comment)\b"
    r"|^\W*(?:error|warning|none|null|nan|n/?a|undefined|todo|tbd)\W*(?:[:.!]|$)"
    r"|\b(?:this|the|your) (?:request|query|prompt)\b"
    r"|\blorem ipsum\b|\bplaceholder\b|\b(?:insert|add) (?:\w+ )?(?:description|caption"
    r"|text) here\b"
    r"|\b(?:more|further|additional) (?:information|details|context) (?:is|are|would be)"
    r" (?:needed|required|necessary|helpful)\b|\bhow (?:can|may) i (?:help|assist)\b",
    re.IGNORECASE,
)
_FIRST_OR_SECOND_PERSON = re.compile(
    r"(?<!War )(?<![A-Z]')\bI(?:['’](?:m|ll|ve|d))?\s+[a-z]|\bi(?:['’](?:m|ll|ve|d)|\s+am)\b"
    r"|\b(?:[Mm]y|[Mm]e|[Mm]yself|[Yy]ou|[Yy]ours?|[Yy]ou['’](?:re|ll|ve))\b"
    r"|\b[Ww]e['’](?:re|ll|ve|d)\b|\b[Ww]e (?:cannot|can['’]?t|do not|don['’]?t|apologi[sz]e)\b"
)


def refusal(text: str) -> str | None:
    """The model writes about itself, or asks the reader for something."""
    plain = remove_quotations(text)
    return match_reason("refusal", _REFUSAL, plain) or match_reason(
        "refusal", _FIRST_OR_SECOND_PERSON, plain
    )
