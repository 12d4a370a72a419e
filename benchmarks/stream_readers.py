"""What bench_stream.py times: each reads all samples of a dataset on S3 as bytes, in one process, its own usual way.

A reader yields the bytes of one sample after the other: colour, depth and meta. Its packages are imported when it is
asked for, before the clock starts.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Reader = Callable[[], Iterator[int]]  # bytes of each sample
PART = 4 << 20


def ours(url: str, shuffle_block: int) -> Reader:
    """The stream of a training, without decoding."""
    from shards.stores.cache import open_cache
    from t4p.data.fetch import Catalogue
    from t4p.data.ranks import Nodes
    from t4p.data.read_ahead import ReadAhead
    from t4p.data.stream import StreamSettings, TrainingStream

    def read() -> Iterator[int]:
        catalogue = Catalogue([url])
        with cold_folder() as folder:  # cold, as of the others
            ahead = ReadAhead(open_cache(Path(folder), None, print), "bench")
            settings = StreamSettings(0, 64, shuffle_block, 32, 1, 0, Nodes((0,)), 0, 0.0, read_ahead=ahead)
            stream = TrainingStream(catalogue, Raw(), settings)
            for batch in stream.batches(0, catalogue.num_samples // 32):
                yield from batch

    return read


def validation(url: str, shuffle_block: int) -> Reader:
    """The stream of a validation, likewise."""
    from shards.stores.cache import open_cache
    from t4p.data.fetch import Catalogue
    from t4p.data.read_ahead import ReadAhead
    from t4p.data.stream import ValidationStream

    def read() -> Iterator[int]:
        with cold_folder() as folder:
            ahead = ReadAhead(open_cache(Path(folder), None, print), "bench")
            stream = ValidationStream(Catalogue([url]), Raw(), 0, read_ahead=ahead, block_bytes=shuffle_block)
            for batch in stream.batches():
                yield from batch

    return read


class Raw:
    """The recipe that leaves frames as they are stored."""

    def make(self, stored: Any, dataset_index: int, key: str, epoch: int) -> int:
        """How many bytes its images have."""
        return len(stored.color) + len(stored.depth)

    def join(self, samples: Sequence[int]) -> Sequence[int]:
        """As they are."""
        return samples


def cold_folder() -> tempfile.TemporaryDirectory[str]:
    """For a cache that holds nothing yet: in memory, where ours lies by default."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def webdataset(url: str) -> Reader:
    """Whole tars, one after the other, as it expands them."""
    import boto3
    from webdataset.tariterators import group_by_keys, tar_file_expander

    bucket, names = list_tars(url)

    def read() -> Iterator[int]:
        client = boto3.client("s3")
        for name in names:
            body = client.get_object(Bucket=bucket, Key=name)["Body"].read()
            for sample in group_by_keys(tar_file_expander([{"url": name, "stream": io.BytesIO(body)}])):
                yield len(sample["color.jpg"]) + len(sample["depth.png"])

    return read


def s3torchconnector(url: str) -> Reader:
    """Amazon's connector, its sequential reader under tarfile."""
    from s3torchconnector import S3ClientConfig, S3IterableDataset

    bucket, names = list_tars(url)

    def read() -> Iterator[int]:
        dataset = S3IterableDataset.from_objects(
            [f"s3://{bucket}/{name}" for name in names],
            region="us-east-1",
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            s3client_config=S3ClientConfig(force_path_style=True),
        )
        for tar in dataset:
            size = 0
            with tarfile.open(fileobj=io.BytesIO(tar.read())) as members:
                for member in members:
                    file = members.extractfile(member)
                    size += len(file.read()) if file else 0
                    if member.name.endswith("meta.json"):
                        yield size
                        size = 0

    return read


def mosaicml(url: str) -> Reader:
    """MosaicML Streaming over its own shards, cold cache."""
    from streaming import StreamingDataset

    def read() -> Iterator[int]:
        with cold_folder() as local:
            for sample in StreamingDataset(remote=f"{url}-mds", local=local, shuffle=True, batch_size=32):
                yield len(sample["color"]) + len(sample["depth"])

    return read


def litdata(url: str) -> Reader:
    """LitData over its own chunks, cold cache."""
    from litdata import StreamingDataset
    from litdata.streaming import downloader

    # It has no option for a server without TLS.
    downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}

    def read() -> Iterator[int]:
        with cold_folder() as local:
            options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
            dataset = StreamingDataset(f"{url}-litdata", cache_dir=local, shuffle=True, storage_options=options)
            for sample in dataset:
                yield len(sample["color"]) + len(sample["depth"])

    return read


def energon(url: str) -> Reader:
    """Megatron-Energon's raw reading of the same tars."""
    _configure_storage_of_energon()
    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset, stateless

    @stateless
    def as_it_is(sample: Any) -> Any:
        return sample

    class Bytes(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [Cooker(as_it_is)]  # noqa: RUF012
        decoder = None

    def read() -> Iterator[int]:
        config = WorkerConfig(rank=0, world_size=1, num_workers=0)
        dataset = get_train_dataset(
            f"msc://bench/{url.rpartition('/')[2]}",
            batch_size=None,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            worker_config=config,
            task_encoder=Bytes(),
        )
        for sample in get_loader(dataset):
            yield len(sample["color.jpg"]) + len(sample["depth.png"])

    return read


def boto3_bytes(url: str) -> Reader:
    """Whole tars by boto3, not even cut into samples."""
    import boto3

    bucket, names = list_tars(url)

    def read() -> Iterator[int]:
        client = boto3.client("s3")
        for name in names:
            yield len(client.get_object(Bucket=bucket, Key=name)["Body"].read())

    return read


def obstore_bytes(url: str) -> Reader:
    """Whole tars by obstore, one request each, one after the other: what reading bytes costs at least."""
    import obstore

    store, names = obstore_store(url)

    def read() -> Iterator[int]:
        for name in names:
            yield len(obstore.get(store, name).bytes())

    return read


def obstore_parts(url: str) -> Reader:
    """Parts of 4 MiB by obstore, 16 in flight: what the way to storage gives at most."""
    import obstore

    store, names = obstore_store(url)

    def read() -> Iterator[int]:
        parts = []
        for name in names:
            size = obstore.head(store, name)["size"]
            parts += [(name, start, min(PART, size - start)) for start in range(0, size, PART)]
        with ThreadPoolExecutor(16) as threads:
            yield from threads.map(
                lambda part: len(obstore.get_range(store, part[0], start=part[1], length=part[2])), parts
            )

    return read


OURS = {"ours": ours, "ours-validation": validation}
READERS: dict[str, Callable[[str], Reader]] = {
    "webdataset": webdataset,
    "s3torchconnector": s3torchconnector,
    "mosaicml": mosaicml,
    "litdata": litdata,
    "energon": energon,
    "boto3_bytes": boto3_bytes,
    "obstore_bytes": obstore_bytes,
    "obstore_parts": obstore_parts,
}


def list_tars(url: str) -> tuple[str, list[str]]:
    """Bucket and names of the tars of a dataset."""
    import boto3

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return bucket, [entry["Key"] for page in pages for entry in page["Contents"] if entry["Key"].endswith(".tar")]


def obstore_store(url: str) -> tuple[object, list[str]]:
    """The bucket as obstore reads it, and the names of the tars."""
    from obstore.store import S3Store

    bucket, names = list_tars(url)
    store = S3Store(
        bucket,
        config={
            "endpoint": os.environ["AWS_ENDPOINT_URL"],
            "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
            "region": "us-east-1",
            "virtual_hosted_style_request": "false",
        },
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    return store, names


def convert(dataset: str, url: str) -> None:
    """The samples of a packed folder in the formats of MosaicML and LitData beside `url`, and Energon's index.

    What cannot be made is left out, and said: its reader then fails, and is reported so.
    """
    for make in (_make_mds, _make_litdata, _make_energon):
        try:
            make(dataset, url)
        except Exception as error:
            print(f"{make.__name__}: {type(error).__name__}: {error}", flush=True)


def _frames(dataset: str) -> Iterator[dict[str, bytes]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for path in sorted(Path(dataset).glob("*.tar")):
        with path.open("rb") as stream:
            for sample in group_by_keys(tar_file_expander([{"url": path.name, "stream": stream}])):
                yield {"color": sample["color.jpg"], "depth": sample["depth.png"], "meta": sample["meta.json"]}


def _make_mds(dataset: str, url: str) -> None:
    from streaming import MDSWriter

    columns = dict.fromkeys(("color", "depth", "meta"), "bytes")
    with MDSWriter(out=f"{url}-mds", columns=columns, size_limit=16 << 20) as writer:
        for sample in _frames(dataset):
            writer.write(sample)


def _make_litdata(dataset: str, url: str) -> None:
    from litdata.streaming import Cache

    with cold_folder() as folder:
        cache = Cache(folder, chunk_bytes=16 << 20)
        for index, sample in enumerate(_frames(dataset)):
            cache[index] = sample
        cache.done()
        cache.merge()
        _upload(Path(folder), f"{url}-litdata")


def _make_energon(dataset: str, url: str) -> None:
    import yaml
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors import BaseWebdatasetFactory

    names = sorted(path.name for path in Path(dataset).glob("*.tar"))
    root = EPath(dataset)
    BaseWebdatasetFactory.prepare_dataset(
        root, names, split_parts_ratio=[("train", 1.0)], tar_index_only=False, workers=1
    )
    loader = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    (Path(dataset) / ".nv-meta" / "dataset.yaml").write_text(yaml.safe_dump(loader))
    _upload(Path(dataset) / ".nv-meta", f"{url}/.nv-meta")
    _upload(Path(dataset), url, "*.tar.idx")


def _configure_storage_of_energon() -> None:
    """Its storage client reads a file: a profile for the server."""
    import yaml

    provider = {
        "type": "s3",
        "options": {"base_path": "bench", "endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"},
    }
    path = Path(tempfile.mkdtemp()) / "msc.yaml"
    path.write_text(yaml.safe_dump({"profiles": {"bench": {"storage_provider": provider}}}))
    os.environ["MSC_CONFIG"] = str(path)


def _upload(folder: Path, url: str, pattern: str = "**/*") -> None:
    import boto3

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    for path in sorted(folder.glob(pattern)):
        if path.is_file():
            boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")
