"""The partitions of every asset and the mappings between them, written out from the lineage of a graph.

A partition is one static key: a model, a model and a precision, or a row.
https://docs.dagster.io/guides/build/partitions-and-backfills/defining-dependencies-between-partitioned-assets
"""

import json
from collections.abc import Mapping

import dagster as dg

from pipelines.dagster.lineage import MODEL_REVISION, SETTINGS, TOOLCHAIN, AssetPartition, Lineage, source_versions
from pipelines.dagster.placement import pod, queue
from pipelines.plan.graph import Graph


class RowPartitions(dg.StaticPartitionsDefinition):
    """Rows, each run tagged with what its worker must be."""

    def __init__(self, graph: Graph) -> None:
        self._tags = {
            plan.row.name: {
                "enginery/model": plan.row.model.name,
                "enginery/sku": plan.row.sku.name,
                "enginery/precision": str(plan.row.precision),
                "dagster-celery/queue": queue(plan.row.sku.name),
                "dagster-k8s/config": json.dumps(pod(plan.row)),
            }
            for plan in graph.rows
        }
        super().__init__(list(self._tags))

    def get_tags_for_partition_key(self, partition_key: str) -> dict[str, str]:
        return {**super().get_tags_for_partition_key(partition_key), **self._tags[partition_key]}


class Partitions:
    """The partitions definition of each asset, and its dependencies."""

    def __init__(self, graph: Graph, lineages: Mapping[AssetPartition, Lineage]) -> None:
        self._lineages = lineages
        models = [model.name for model in graph.models]
        sources = source_versions(lineages)
        of_models, of_rows = dg.StaticPartitionsDefinition(models), RowPartitions(graph)
        imaged = [key for asset, key in lineages if asset == "image"]
        typed = [key for asset, key in lineages if asset == "typed_onnx"]
        self.of: dict[str, dg.StaticPartitionsDefinition] = {
            "fp32_onnx": of_models,
            "typed_onnx": dg.StaticPartitionsDefinition(typed),
            "engine": of_rows,
            "verdict": of_rows,
            "manifest": of_models,
            "image": of_models if set(imaged) == set(models) else dg.StaticPartitionsDefinition(imaged),
            "publication": of_models,
            MODEL_REVISION: of_models,
            TOOLCHAIN: dg.StaticPartitionsDefinition(list(sources[TOOLCHAIN])),
            SETTINGS: dg.StaticPartitionsDefinition(list(sources[SETTINGS])),
        }

    def deps(self, asset: str) -> list[dg.AssetDep]:
        """An asset's dependencies, each with a mapping of partitions."""
        mappings: dict[str, dict[str, list[str]]] = {}
        for partition, entry in self._lineages.items():
            if partition.asset == asset:
                for upstream, key in (*entry.upstream, *entry.sources):
                    mappings.setdefault(upstream, {}).setdefault(key, []).append(partition.key)
        return [
            dg.AssetDep(upstream, partition_mapping=self._mapping(upstream, asset, keys))
            for upstream, keys in mappings.items()
        ]

    def _mapping(self, upstream: str, asset: str, keys: Mapping[str, list[str]]) -> dg.PartitionMapping:
        same = self.of[upstream] is self.of[asset] and all(downstream == [key] for key, downstream in keys.items())
        return dg.IdentityPartitionMapping() if same else dg.StaticPartitionMapping(keys)
