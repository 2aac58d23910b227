"""Which adapter a name means here: those of the registry, and those added to this process only."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from finlora.adapters.adapter import Adapter
from finlora.adapters.compatibility import check_served
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.shipped import open_registry
from finlora.bases.spec import BaseSpec
from finlora.config import Settings
from finlora.errors import AdapterError, AdapterIncompatibleError, AdapterNotFoundError


class Adapters:
    """Owns a temporary registry for what is added; the real one is only read."""

    def __init__(self, settings: Settings) -> None:
        self.registry = open_registry(settings)
        self._settings = settings
        self._folder: TemporaryDirectory[str] | None = None
        self._added: AdapterRegistry | None = None

    def names(self, spec: BaseSpec) -> list[str]:
        """Adapters that the base can serve."""
        found = [*self.registry.current(), *(self._added.current() if self._added else [])]
        return sorted(adapter.name for adapter in found if self._fits(adapter, spec))

    def resolve(self, name: str | None, spec: BaseSpec) -> Adapter | None:
        """The version that a name, alias or name@digest means; None for the base.

        Raises AdapterNotFoundError, AdapterLoadError, AdapterIncompatibleError.
        """
        if name is None or name == spec.name:
            return None
        adapter = self._find(name)
        check_served(adapter, spec, self._settings)
        return adapter

    def add(
        self,
        folder: Path,
        name: str,
        spec: BaseSpec,
        *,
        labels: Sequence[str] | None,
        template: str | None,
    ) -> list[str]:
        """Judge a PEFT folder and keep a copy until `close`; warnings. Raises AdapterError."""
        # Imported here: it judges weights with torch, which a wrong setting need not wait for.
        from finlora.adapters.adding import Target, add_folder

        if (
            name == spec.name
            or self.registry.is_registered(name)
            or name in self.registry.aliases()
        ):
            raise AdapterError(
                f"the name {name!r} is taken in {self.registry.folder}; choose another"
            )
        target = Target(
            spec=spec,
            quantization=self._settings.quantization,
            max_rank=self._settings.max_lora_rank,
            strict=self._settings.strict,
            labels=None if labels is None else list(labels),
            prompt_template=template,
        )
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="finlora-adapters-")
            self._added = AdapterRegistry(Path(self._folder.name), who="finlora.Engine")
        assert self._added is not None
        return add_folder(self._added, folder, name, None, target).warnings

    def close(self) -> None:
        """Delete what was added."""
        if self._folder is not None:
            self._folder.cleanup()

    def _find(self, name: str) -> Adapter:
        if self._added is not None:
            with suppress(AdapterNotFoundError):
                return self._added.resolve(name)
        return self.registry.resolve(name)

    def _fits(self, adapter: Adapter, spec: BaseSpec) -> bool:
        try:
            check_served(adapter, spec, self._settings)
        except AdapterIncompatibleError:
            return False
        return True
