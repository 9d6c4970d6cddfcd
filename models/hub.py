"""Hugging Face's conventions: ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

The files are those of our export folder, so a folder made either way opens either way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from segclip.console import UserError, one_line

__all__ = ["SegCLIPHubMixin"]


class SegCLIPHubMixin(
    PyTorchModelHubMixin,
    library_name="segclip",
    pipeline_tag="image-segmentation",
    tags=["segclip", "open-vocabulary-segmentation", "zero-shot"],
    paper_url="https://arxiv.org/abs/2211.14813",
):
    """Reads and writes ``model.safetensors``, ``config.json`` and ``README.md`` of a SegCLIP network."""

    card: dict[str, Any]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """A network from an export folder or from a repository of the Hugging Face hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: folder, or ``owner/name``.
            **options: those of ``huggingface_hub.PyTorchModelHubMixin.from_pretrained`` (``revision``,
                ``cache_dir``, ``local_files_only``, ``map_location``, …) and ``strict``, as in
                ``segclip.load``.

        Raises:
            FileNotFoundError: no such folder, or one without the files.
            ValueError: files that are not a network, or do not fit it.
            UserError: the hub has no such repository or can not be reached.
        """
        name = str(pretrained_model_name_or_path)
        if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
            raise FileNotFoundError(
                f"no export folder at {name}, nor is that a repository's name (owner/name) on the hub"
            )
        try:
            found: Self = super().from_pretrained(name, **options)
        except HFValidationError as error:
            raise FileNotFoundError(
                f"no export folder at {name}, nor a repository: {one_line(error)}"
            ) from error
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise UserError(
                f"there is no folder {name}, and the repository {name} could not be read from the hub "
                f"({one_line(error)})"
            ) from error
        return found

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **unused: Any,
    ) -> Any:
        from segclip.models.checkpoint import load
        from segclip.models.files import CONFIG_FILE, WEIGHTS_FILE

        # The mixin hands over what it read from config.json; the folder is read as a whole below.
        unknown = sorted(set(unused) - {"config", "load_init"})
        if unknown:
            raise ValueError(
                f"from_pretrained takes no {', '.join(unknown)}: the configuration lies with the weights"
            )
        folder = Path(model_id)
        if not folder.is_dir():
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                file = hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
                folder = Path(file).parent
        return load(folder, strict=strict, device=map_location)

    def _save_pretrained(self, save_directory: Path) -> None:
        from segclip.models.export_folder import write_network

        write_network(self, save_directory)  # type: ignore[arg-type]  # mixed into SegCLIP alone

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card that ``save_pretrained`` writes where there is none."""
        from segclip.models.card import model_card

        return ModelCard(model_card(self.config, self.card))  # type: ignore[attr-defined]
