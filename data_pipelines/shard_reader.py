"""Fetching a shard: from the cache or the store, compared with the manifest, indexed."""

from __future__ import annotations

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import OF_THE_SHARD, BadShard, StoreError
from segclip.data_pipelines.manifest import ShardEntry, check_shard
from segclip.data_pipelines.shard import Shard, open_stated
from segclip.data_pipelines.storage.disk_cache import DiskCache
from segclip.data_pipelines.storage.store import open_store

__all__ = ["ShardReader"]


class ShardReader:
    """Reads shards of one set."""

    def __init__(self, url: str, config: DataConfig, counters: Counters) -> None:
        """
        Args:
            url: where the set lies.
            config: how it is read; which sets it names does not matter here.
            counters: what reading adds to.

        Raises:
            ValueError: the store or the cache folder cannot be opened.
        """
        settings = config.store
        self._store = open_store(url, settings=settings, counters=counters, allow_pipe=config.allow_pipe)
        self._checksum = config.checksum
        self._counters = counters
        # Local files are as near as the cache would be.
        self._cache = (
            DiskCache(settings.cache_dir, int(settings.cache_gib * 2**30), counters)
            if settings.cache_dir is not None and self._store.reader is not None
            else None
        )

    def read(self, entry: ShardEntry) -> Shard:
        """A shard that is what the manifest states.

        Raises:
            BadShard: it is missing or not what the manifest states.
            StoreError: it cannot be had at the moment.
        """
        return open_stated(entry, self._content(entry), self._store.url)

    def _content(self, entry: ShardEntry) -> memoryview:
        try:
            if self._cache is None:
                return self._fetch(entry, self._checksum)
            # What lies in the cache under its sum has to have it.
            return self._cache.get(entry.sha256, entry.bytes, lambda: self._fetch(entry, True))
        except StoreError as error:
            if error.cause in OF_THE_SHARD:
                raise BadShard(error.cause, str(error)) from error
            raise

    def _fetch(self, entry: ShardEntry, checksum: bool) -> memoryview:
        try:
            return self._fetch_once(entry, checksum)
        except BadShard as error:
            # The way here may have damaged it: asked once more before it is called bad.
            if error.cause != "checksum" or self._store.reader is None:
                raise
            self._counters.add("store/retries/checksum")
            return self._fetch_once(entry, checksum)

    def _fetch_once(self, entry: ShardEntry, checksum: bool) -> memoryview:
        content = self._store.get(entry.path, entry.bytes)
        check_shard(entry, content, self._store.url, checksum=checksum)
        return content
