"""Whether a line outside any fence is code, prose, or either."""

import re

_LOOKED_AT = 400  # characters of a line that decide
_SQL = "SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|GRANT|FROM|RUN|COPY|ADD|CMD|ENTRYPOINT|USER"

# A line that starts as a sentence stays prose whatever follows, so it can go out at once: four
# words in a row after a capital, or a run of letters of a script without spaces.
_SENTENCE = re.compile(
    r"[\s>*_#\"'(\[-]*(?:\d{1,3}[.)]\s+)?[*_\"'(]*"
    rf"(?!(?:{_SQL})\s)"
    r"(?:[A-Z][^\W\d_]*(?:['’][^\W\d_]+)?[*_]*[,:]?"
    r"(?:\s+[*_\"'(]*[^\W\d_]+(?:['’-][^\W\d_]+)*[*_\"')]*[,:;]?){3,}\s"
    r"|[\u3040-\u9fff\uac00-\ud7af]{4})"
)
# Two words and an end also make a heading or a short answer.
_SHORT = re.compile(r"[*_#\s>\"'(-]*[A-Z][a-z'’]+(?:[,:]?\s+[\w'’-]+)+[.!?:]?[*_]*\s*$")
_MARKERS = re.compile(r"\s*(?:(?:>|[-*+]|\d{1,3}[.)])\s+)*")

_CERTAIN = [
    # Declarations and directives.
    r"from\s+[\w.]+\s+import\s+[\w(*]|import\s+[\w.]+(\s+as\s+\w+)?(\s*,\s*\w+)*;?\s*$",
    r"import\s.*\bfrom\s+['\"]|import\s+(static\s+)?\w+\.[\w.*]+;?\s*$|import\s+['\"(]",
    r"#\s*(include|define|ifdef|ifndef|pragma)\b|#!\s*/|#!?\[\w",
    r"(async\s+)?def\s+(self\.)?\w+[?!]?\s*(\(|$)|class\s+\w+.*[:{]\s*$",
    r"(public|private|protected|internal|static|final|abstract|export|default|async|override|open|"
    r"pub(\(\w+\))?)\s.*([{;(,]|=>)\s*$",
    r"(public|private|internal|protected)\s+((static|final|abstract|sealed|partial)\s+)*"
    r"(class|interface|struct|enum|record)\s+\w+",
    r"(export\s+)?(async\s+)?(function|func|fn|fun|sub)\s*\*?\s*(\([^)]*\)\s*)?\w*\s*[(<]",
    r"(const|let|var|val|auto|final|static)\s+(mut\s+)?[\w\[\]{},: *&<>?]+\s*=[^=]",
    r"use\s+[\w:]+.*;|using\s+[\w.]+;|package\s+[\w.]+;?$|namespace\s+[\w.\\]+\s*[{;]?$",
    r"type\s+\w+\s+(struct|interface)\s*\{|(data\s+)?(struct|enum|interface|trait|impl)\b.*\{\s*$",
    r"require(_relative)?\s+['\"]|module\s+[A-Z]\w*\s*$",
    r"<\?(php|=|xml)|</?(!doctype|html|head|body|script|div|form|input|p|a|span|ul|li|img|h\d)\b",
    r"<[A-Za-z][\w:.-]*(\s+[\w:.-]+=\"[^\"]*\")*\s*/?>|</[A-Za-z][\w:.-]*>\s*$|<!(ENTITY|DOCTYPE)\b",
    # Statements.
    r"\w[\w.$:>\-\[\]'\"]*\(.*\)\s*;?\s*$",
    r"(await|return|yield|throw|raise|new|go|defer|del|assert|echo|print|delete)\s.*[\w.\])>]\(.*|"
    r"echo\s+\S.*;\s*$|set\s+-[a-z]+\s*$",
    r".*(\w\(.*|\w\s*=\s*.*|->.*|::.*|\w\.\w.*|\breturn\b.*|\bbreak|\bcontinue);\s*(//.*)?$",
    r".*[)\w\]>]\s*\{\s*(//.*)?$|.*\)\s*=>\s*[\[{(\w].*|\S.*\w\(\s*$|.*\bdo\s*\|.*\|\s*$",
    r"[\w.$\[\]'\"*@-]+(\s*,\s*[\w.$]+)*(\s*:\s*[\w\[\], .|<>?]+)?\s*(\?\?|[:+*/|.?-])?=(?!=)\s*\S",
    r"(if|elif|for|while|with|except|match)\s.*(==|!=|\bin\b|\w\(|\bnot\b|\bas\b|<|>).*:\s*$",
    r"(try|else|finally)\s*:\s*$|(if|for|while|switch|catch|foreach|lock|using)\s*\(.*[{);]\s*$",
    r"[A-Za-z_][\w<>:]*\s+\**\w+(\[\w*\])?(\s*=\s*.*)?;\s*$",
    r"\$\w+(\[|->|\s*=)",
    # Languages with words of their own.
    r"(?i:select\s.+\sfrom\s+\S+.*(;|\swhere\s|\slimit\s|\w$)|insert\s+into\s+\S+|delete\s+from\s+\S+|"
    r"update\s+\S+\s+set\s+\S+\s*=|create\s+(or\s+replace\s+)?(table|index|view|user|role|database|"
    r"function|procedure|login)\s|(alter|drop|truncate)\s+(table|user|role|database)\s|"
    r"grant\s+[\w, ]+\s+(on|to)\s)",
    r"FROM\s+[\w./:${}@-]+(\s+(AS|as)\s+\w+)?\s*$|(RUN|COPY|ADD|WORKDIR|ENTRYPOINT|CMD|EXPOSE|USER)\s+\S",
    r"(resource|data)\s+\"\w+\"\s+\"|(variable|provider|module|output)\s+\"[\w-]+\"\s*\{",
    r"(apiVersion|kind|metadata|spec|services|version|jobs|containers):(\s+[\w\"'./]+)?\s*$",
    r"(\$\s+)?(sudo|curl|wget|chmod|chown|rm|cp|mv|mkdir|export|apt|apt-get|pip3?|npm|git|docker|"
    r"kubectl|tar|ssh|scp|nc|bash|sh|eval|source|openssl|python3?)\s+.*[-/$\"|=.:]",
    r"\"[\w.-]+\"\s*:\s*[\[{\"\dtfn-]",
]  # fmt: skip
_CODE = re.compile("|".join(f"(?:{pattern})" for pattern in _CERTAIN))
_COMMENT = re.compile(r"\s*(?://|#(?!#)|--|/\*|<!--)")
_CONTINUES = re.compile(
    r"\s*$|\s*(?:@\w|[\]})]|\{|\[|end\b|else\b|fi\b|done\b|\.\w|\|\||&&|\?|:)|\s{2,}\S|\t"
)


def starts_as_prose(line: str, in_code: bool = False) -> bool:
    """Whether a line, complete or not, is prose whatever may still follow on it.

    With ``in_code`` it follows code without a fence, where a comment is no prose.
    """
    if in_code and _COMMENT.match(line):
        return False
    return _SENTENCE.match(line[:_LOOKED_AT]) is not None


def is_prose(line: str, in_code: bool = False) -> bool:
    """Whether a complete line is clearly prose; ``in_code`` as in `starts_as_prose`."""
    return starts_as_prose(line[: _LOOKED_AT - 1] + " ", in_code)


def code_of_line(line: str) -> str | None:
    """The code of a complete line that alone is clearly code, without list and quote marks."""
    line = line[:_LOOKED_AT]
    if is_prose(line) or _SHORT.match(line):
        return None
    if _CODE.match(line.lstrip()):
        return line
    marks = _MARKERS.match(line)
    body = line[marks.end() :] if marks else line
    return body if _CODE.match(body) else None


def continues_code(line: str, directly: bool) -> bool:
    """Whether a line carries on the code above it, ``directly`` when no empty line is between.

    A comment, a bracket and an indented line do; directly below, anything but a sentence does.
    """
    if is_prose(line, in_code=True):
        return False
    if _COMMENT.match(line) or _CONTINUES.match(line[:_LOOKED_AT]):
        return True
    return directly and _SHORT.match(line[:_LOOKED_AT]) is None
