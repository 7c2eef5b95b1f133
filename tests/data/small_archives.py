"""Small archives in the layout of the official ones, with a few synthetic images each.

    python -m tests.data.small_archives DATASET --manual_dir=FOLDER --data_dir=FOLDER

creates the archives of a data set in --manual_dir, if they do not exist, and prepares it like
`l2l_jax.data.prepare`, with the sizes and checksums of the small archives in place of the real ones.
"""

import dataclasses
import io
import json
import pathlib
import sys
import tarfile
import zipfile

import numpy as np
from PIL import Image

IMAGENET_TRAIN = {"n01440764": 3, "n01443537": 4, "n02437616": 2}
"""Number of images by class: tench, goldfish (forget set of the published split), llama (retain set)."""

IMAGENET_VAL = 3
PLACES_TRAIN = {"/a/airfield": (0, 2), "/b/beach": (48, 3), "/a/archive": (14, 2)}
"""Class ids and numbers of images by folder."""

PLACES_VAL = {"Places365_val_00000001.jpg": 48, "Places365_val_00000002.jpg": 14}
COCO = {"train2017": 4, "val2017": 2, "test2017": 1}


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((24, 16), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def write_tar(target, members: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def imagenet(folder: pathlib.Path) -> None:
    """Write a tar of tars for training, and a tar of images for validation."""
    classes = {}
    for wnid, count in IMAGENET_TRAIN.items():
        tar = io.BytesIO()
        number = int(wnid[1:])
        write_tar(tar, {f"{wnid}_{i}.JPEG": picture(number + i) for i in range(1, count + 1)})
        classes[f"{wnid}.tar"] = tar.getvalue()
    with open(folder / "ILSVRC2012_img_train.tar", "wb") as file:
        write_tar(file, classes)
    with open(folder / "ILSVRC2012_img_val.tar", "wb") as file:
        names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, IMAGENET_VAL + 1)]
        write_tar(file, {name: picture(i) for i, name in enumerate(names)})


def places(folder: pathlib.Path) -> None:
    train = {
        f"{place}/{i:08}.jpg": label
        for place, (label, count) in PLACES_TRAIN.items()
        for i in range(1, count + 1)
    }
    test = ["Places365_test_00000001.jpg"]
    lists = {
        "places365_train_standard.txt": "".join(f"{name} {label}\n" for name, label in train.items()),
        "places365_val.txt": "".join(f"{name} {label}\n" for name, label in PLACES_VAL.items()),
        "places365_test.txt": "".join(f"{name}\n" for name in test),
    }
    for archive, members in {
        "train_256_places365standard.tar": [f"data_256{name}" for name in train],
        "val_256.tar": [f"val_256/{name}" for name in PLACES_VAL],
        "test_256.tar": [f"test_256/{name}" for name in test],
    }.items():
        with open(folder / archive, "wb") as file:
            write_tar(file, {name: picture(len(name) + i) for i, name in enumerate(members)})
    with open(folder / "filelist_places365-standard.tar", "wb") as file:
        write_tar(file, {name: text.encode() for name, text in lists.items()})


def coco(folder: pathlib.Path) -> None:
    categories = [{"id": i + 1, "name": f"category {i + 1}"} for i in range(80)]
    annotations = {}
    for split, count in COCO.items():
        names = [f"{i:012}.jpg" for i in range(1, count + 1)]
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for i, name in enumerate(names):
                archive.writestr(f"{split}/{name}", picture(len(split) + i))
        images = [{"id": i, "file_name": n, "height": 16, "width": 24} for i, n in enumerate(names, 1)]
        box = {"bbox": [1, 2, 3, 4], "category_id": 1, "area": 12, "iscrowd": 0}
        objects = [{"id": i, "image_id": i, **box} for i in range(1, count + 1)]
        annotations[split] = {"images": images, "categories": categories, "annotations": objects}
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip", "w") as archive:
        for split in ("train2017", "val2017"):
            archive.writestr(f"annotations/instances_{split}.json", json.dumps(annotations[split]))
    with zipfile.ZipFile(folder / "image_info_test2017.zip", "w") as archive:
        del annotations["test2017"]["annotations"]
        archive.writestr("annotations/image_info_test2017.json", json.dumps(annotations["test2017"]))


MAKERS = {"imagenet2012": imagenet, "places365_small": places, "coco/2017": coco}


def expect_small(dataset: str, folder: pathlib.Path) -> None:
    """Make TFDS expect the files in `folder` as the published ones."""
    from tensorflow_datasets.core.download import checksums, download_manager

    from l2l_jax.data import prepare

    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    prepare.ARCHIVES[dataset] = tuple(
        archive._replace(size=sizes.get(archive.name, archive.size)) for archive in prepare.ARCHIVES[dataset]
    )
    init = download_manager.DownloadManager.__init__

    def init_small(self, **options):
        init(self, **options)
        for url, info in self._url_infos.items():
            if info.filename in sizes:
                path = checksums.epath.Path(folder / info.filename)
                self._url_infos[url] = dataclasses.replace(
                    checksums.compute_url_info(path), filename=info.filename
                )

    download_manager.DownloadManager.__init__ = init_small


def main(argv: list[str]) -> int:
    from l2l_jax.data import prepare

    folder = pathlib.Path(next(a for a in argv if a.startswith("--manual_dir=")).partition("=")[2])
    if not folder.exists():
        folder.mkdir(parents=True)
        MAKERS[argv[0]](folder)
    expect_small(argv[0], folder)
    return prepare.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
