"""The page about CLIP models at full size: its prose is here, its tables are made from the data files of the package."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import pages

from fusionbench_lite import resources
from fusionbench_lite.base.needs import size_text
from fusionbench_lite.checkpoints.families import PACKAGED, family_of
from fusionbench_lite.data import vision
from fusionbench_lite.finetuning import recipes
from fusionbench_lite.models import clip, prompts
from fusionbench_lite.models.clip_sizes import SIZES as CLIP
from fusionbench_lite.planning import task_sets

START = """# CLIP at full size

Written by `make docs` from the data files of the package.

    python -m fusionbench_lite.doctor method=adarank model=vit_l14 tasks=20   # what it needs, before it starts
    python -m fusionbench_lite method=adarank model=vit_l14 tasks=20          # fetches, converts, decodes, adapts, evaluates
    python -m fusionbench_lite method=tsv_m model=vit_b32 tasks=8 checkpoints=fusionbench
    python -m fusionbench_lite method=adarank model=vit_b32 checkpoints=ta checkpoints.dir=FOLDER data_dir=IMAGES
    python -m fusionbench_lite.finetune model=vit_b32 task=dtd                # make a missing expert
    python -m fusionbench_lite.convert finetuned.pt sun397.safetensors        # read an old pickle without running it

A record names the repository, commit and SHA-256 of every file it was made from, and repeats the caveats of its
checkpoints and data; tables print them. **No published checkpoint and no GPU was at hand when this was written**:
everything here runs in the tests on files of the published names, layouts, shapes and types with random weights, served
by a local hub.

## Models
"""

LAYOUT = """
`model.layout=packed` is open_clip's encoder, whose queries, keys and values share one matrix, `separate` that of
transformers with a matrix each. Weights are converted once to the layout asked for; the default is that of the
checkpoints. Methods that decompose matrices differ between the two: four matrices a block or six. Both run with
QuickGELU, which OpenAI's weights need.

## Checkpoint families
"""

FAMILIES = """
`ta_tall` is the default: as AdaRank loads them, the eight standard tasks from Task Arithmetic and the other twelve from
TALL-masks. `own` reads a folder of `pretrained.safetensors`, `individual-TASK.safetensors` and `heads.safetensors`, as
`python -m fusionbench_lite.finetune` leaves it; its `manifest.json` says which family they stand in for, as in
`{"family": "tall"}`, and their rules are that family's. Without it methods that rank all entries count no zeros of the text
side, and the record says so.
`checkpoints.dir=FOLDER` takes a family's files from a folder in the family's own arrangement, `checkpoints.manifest=FILE`
replaces the packaged list of repositories, sizes and hashes by one of the same form.

Task Arithmetic's and TALL-masks' encoders carry six tensors of the text side. They have to equal the pretrained ones to
the bit and are left out; methods that rank all entries of a task vector count their zeros (`virtual_zeros`). FusionBench
merges the vision tower alone; its projection is the pretrained model's. Heads: Task Arithmetic's and TALL-masks' own
files where they are there, else built from the prompts by the pretrained text tower; FusionBench's are built.

Pickled modules are read by an interpreter of our own that knows a list of classes, builds nothing else and calls nothing:
a file that asks for another class is refused by name. Every file is checked before it is used: size and SHA-256 where
they are published, tensor names, shapes, finite values.

Training checkpoints are looked into, here and by `convert`: the image tower is found in whatever entry (`state_dict`, `model`)
and under whatever prefix (`net.`, `module._orig_mod.`) it lies, what wrappers add inside names is taken off too, and the state
of optimizers is passed over. What was taken off is printed and kept in the metadata of the converted file. Two towers that
differ, as a model and its moving average, are refused by name: `convert SOURCE OUT tower=state_dict_ema` keeps one of them.

## Data sets
"""

DATA = """
Test splits are decoded once to 224 x 224 bytes, the squares that CLIP's own preprocessing cuts, and kept in a mapped file
with a checksum per image: a second run decodes nothing. Training splits are fetched where a method reads them. Images
that cannot be decoded are named and the run is refused, unless `data.skip_corrupt=N` allows so many.

`data_dir` may hold, per task and in this order: `NAME.npz` with `NAME.json`; `NAME/train/CLASS/*.jpg` and
`NAME/test/CLASS/*.jpg`; the layout that torchvision's class of the data set reads. `data.source=hub` or `folder` looks in
one place only, where `hub` stands for the published source; `data.tasks_file` replaces the table above. `limit=N` takes
N evenly spaced test images and marks the record as a trial.

Class folders carry the names of the classes (`prompts.json` and `class_names.yaml` in `fusionbench_lite/data/vision/`) or
their numbers: 0 to C-1 is the label, 1 to C where the data set is published so (Cars, Pets, Flowers102, STL10, EMNIST
letters). FER2013 takes names only. A local `eurosat/2750` is split here, and records say so. Images lie in the class folder
itself: a folder with images in it is refused. Hidden files and folders and what systems leave behind (`._a.png`,
`.ipynb_checkpoints`, `__MACOSX`, `@eaDir`, `Thumbs.db`) are skipped. HEIC, raw and other images that Pillow cannot read count as
images that cannot be decoded; other files are left out, and records say how many.

`NAME.npz` holds `train_images`, `train_labels`, `test_images` and `test_labels`; others, such as `val_images`, are not read.
Images are uint8 [N, H, W, 3], or [N, H, W], [N, H, W, 1], [N, 1, H, W] and [N, 3, H, W]; labels are whole numbers from 0, [N] or
[N, 1], one-hot rows, or names of classes. Anything else is refused with the line that stores it rightly.

Images of 16 bits are scaled to 8 (65,535 is white), 32-bit integers up to 65,535 likewise, floats from 0 to 1 or from 0 to
255; images whose range is not known are refused by name. None is stretched by its own extremes: 12-bit values in a 16-bit
file stay dark, and where all of a split are so, its records say it. As in the published code, alpha is dropped, orientation in EXIF
is not applied and the first frame counts; records of your own images name both.

No repository holds the digits of EMNIST: their published source is the archive that torchvision reads, on NIST's own
server. It is downloaded as files of the hub are, checked by its MD5 and kept below `archives/` (or put there by hand:
where the download fails, the error names the place); the four files of the task are unpacked beside it, after which it
may be deleted. The hub's token is not sent there.

Corruptions (doGe, Table 11): `data.corruption=motion_blur` and so on, for the four tasks whose repositories hold them
ready-made; `data.corruption_from=generated data.severity=5` makes them with the CIFAR-10-C parameters that those were
made with (severity and seeds of the published ones are unknown, and they were stored as JPEG). Pixelate ends at 32 x 32
whatever the image, as published.

## Fine-tuning
"""

END = """
A run that was killed goes on where it was and ends, on a processor, with the same bits. Crops are taken from the original
images, decoded by as many threads as there are processors (at most 16) while the step before is computed;
`finetune.images=square` takes them from the 224 x 224 squares of evaluation. Images of an archive are their own
originals. Parquet files are copied image by image into the cache first (as large as the training files); only held-out
images become squares, unless `data.skip_corrupt` is set.

## Memory

A run prints its plan before it starts: bytes by item, place and phase, and operations, from shapes alone.
`checkpoints.place=device`, `cpu` or `disk` says where task vectors and singular components stay; `auto` takes the first
that fits. Plans are within 20 % of the measured peak in the tests (`tests/resources/test_memory_plan.py`).
[performance.md](performance.md) has measurements.

## Evaluation

`precision=bf16` runs the encoder in mixed precision and heads in float32. The number of images in one pass is found
automatically (`trainer.eval_batch` sets it). Under `torchrun` processes share the tasks; `trainer.devices=2` starts two
for an adaptation. Predictions are kept per example.

`select=best_unsupervised` needs held-out training images, which the presets of CLIP leave out so that no training split is
downloaded: `method.adaptation.held_out=64` reads 64 of each task.

## Caches and the hub

| below `cache_dir` | what |
| --- | --- |
| hub/ | downloads, in the Hugging Face hub's own layout; the user's own Hugging Face cache is used in place |
| archives/ | archives of other servers, by MD5, and what was unpacked of them |
| checkpoints/ | converted experts and base models; the downloads may be deleted after |
| heads/ | heads built from prompts |
| images/ | decoded squares, and copies of the encoded training images that fine-tuning crops |
| scratch/ | task vectors and components with `checkpoints.place=disk`; empty after a run |
| finetuned/ | experts that were trained here |

`python -m fusionbench_lite.cache` lists, clears and verifies them ([housekeeping.md](housekeeping.md)).

Single files are downloaded, checked against the hub's checksum before anything can see them, and continued after an
interruption. What a cache holds is used without asking, so a branch stands for the commit of its first download; delete
`hub/models--OWNER--NAME` to ask again. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HOME` and the time limits of
huggingface_hub are respected; `FUSIONBENCH_LITE_RETRY_SECONDS` is the first wait between two attempts.

## Caveats
"""


def page() -> str:
    """Return the page in Markdown."""
    parts = [START, *pages.table(_models()), LAYOUT, *pages.table(_families()), FAMILIES, *pages.table(_data()), _sizes(), DATA]
    parts += pages.table(_recipes())
    return "\n".join([*parts, END, *_caveats(), ""])


def _models() -> Iterator[list[object]]:
    yield ["model", "patch", "width", "blocks", "tokens", "features", "tensors, packed", "separate", "parameters", "GFLOP an image"]
    for name in CLIP:
        size, passes = clip.SIZES[name], resources.Transformer(resources.encoder(name, "packed"))
        yield [
            name, size.patch, size.width, size.layers, passes.of.tokens, size.output, len(clip.shapes(size, "packed")),
            len(clip.shapes(size, "separate")), f"{sum(map(math.prod, clip.shapes(size, 'packed').values())):,}",
            f"{passes.forward_flops / 1e9:.1f}",
        ]


def _families() -> Iterator[list[object]]:
    yield ["checkpoints", "tasks", "layout", "an expert, B/32", "L/14", "repositories", "or"]
    for name in PACKAGED:
        family = family_of(name)
        repositories = dict.fromkeys(place.repo for place in family.places)
        yield [
            name, len(family.tasks), family.layout, size_text(family.about["vit_b32"]), size_text(family.about["vit_l14"]),
            ", ".join(repositories), family.elsewhere or "",
        ]


def _data() -> Iterator[list[object]]:
    yield ["task", "classes", "training", "test", "hub, or archive", "torchvision or files", "templates"]
    for name in task_sets.resolve(20, None).names:
        for variant in vision.VARIANTS:
            task, texts = vision.task(name, variant), prompts.prompts(name, variant)
            other = vision.task(name, "tall")
            if variant != "tall" and (task.classes, task.test, task.hub) == (other.classes, other.test, other.hub):
                continue
            label = name if variant == "tall" else f"{name}, fusionbench"
            yield [
                label, task.classes, f"{task.train:,}", f"{task.test:,}", _published(task),
                task.local.reader if task.local else "", len(texts.templates),
            ]


def _published(task: vision.Task) -> str:
    """Return the repository of a task, else its archive with size, else "none"."""
    if task.archive is not None:
        return f"[{task.archive.file.title}]({task.archive.url}), {size_text(task.archive.about)}"
    return task.hub.repo if task.hub else "none"


def _sizes() -> str:
    counts = {tasks: sum(vision.task(name, "tall").test for name in task_sets.resolve(tasks, None).names) for tasks in (8, 14, 20)}
    sizes = {tasks: size_text(count * 224 * 224 * 3) for tasks, count in counts.items()}
    return "\nDecoded test images take " + ", ".join(f"{size} for {tasks} tasks" for tasks, size in sizes.items()) + "."


def _recipes() -> Iterator[list[object]]:
    yield ["finetune.recipe", "optimizer", "learning rate", "batch", "schedule", "trained", "crops", "source", "not confirmed"]
    for name in recipes.names():
        recipe = recipes.recipe(name)
        yield [
            name, recipe.optimizer, f"{recipe.lr:g}", recipe.batch, f"{recipe.schedule}, {recipe.warmup} steps of warm-up",
            recipe.trained, "none" if recipe.crop is None else f"of the {recipe.images}", recipe.source, recipe.unconfirmed,
        ]


def _caveats() -> Iterable[str]:
    said = [caveat.text for name in PACKAGED for caveat in family_of(name).caveats]
    said += [text for name in vision.names() for variant in vision.VARIANTS for text in vision.caveats(name, variant)]
    return (f"- {text}" for text in dict.fromkeys(" ".join(text.split()) for text in said))
