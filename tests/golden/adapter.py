"""Runs our network on the golden inputs and names the results as the golden files do.

Every number comes from the public classes; this file only converts names, shapes and injected noise. It can
be handed to the comparison script that came with the golden numbers, and the tests beside it use it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segclip.data_pipelines.patch_labels import patch_labels
from segclip.eval.inference import ClassScorer, Prediction, patches_to_pixels, window_scores
from segclip.eval.windows import Window, window_grid
from segclip.kernels.contrastive import contrastive_loss
from segclip.kernels.superpixel_kl import superpixel_kl_sums_reference
from segclip.models.checkpoint import load_tensors
from segclip.models.config import ModelConfig
from segclip.models.names import from_released, released_name, to_released
from segclip.models.noise import InjectedNoise
from segclip.models.outputs import TrainOutput, VisionOutput
from segclip.models.positions import resample_grid
from segclip.models.segclip import SegCLIP
from segclip.trainer.optimizer import OptimizerConfig, build_optimizer, freeze, frozen_parameters
from segclip.trainer.schedule import learning_rate_factor

Array = NDArray[Any]
Arrays = dict[str, Array]

# The original's trainer, as the golden arrays were made.
RECIPE = OptimizerConfig(
    lr=4e-3,
    lower_lr=4e-6,
    weight_decay=0.05,
    decay_rule="original",
    betas=(0.9, 0.98),
    eps=1e-6,
    freeze_layers=0,
)
STEPS, WARMUP, CLIP_NORM = 20, 0.15, 1.0


# ------------------------------------------------------------------------------------------- network and
# inputs


def config_of(cfg: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """The configuration of a golden model."""
    assert cfg["mae_dec_dim"] == cfg["vision_width"] // 2
    sizes = {
        "image_size": cfg["image"],
        "patch_size": cfg["patch"],
        "vision_width": cfg["vision_width"],
        "vision_heads": cfg["vision_heads"],
        "vision_layers": 12,  # the original's depth can not be changed
        "first_stage_layers": cfg["first_stage_layer"],
        "centers": cfg["centers"],
        "center_layers": cfg["cross_layer"],
        "assignment_temperature": cfg["tau"],
        "embed_dim": cfg["embed_dim"],
        "text_width": cfg["text_width"],
        "text_heads": cfg["text_heads"],
        "text_layers": cfg["text_layers"],
        "context_length": cfg["context_length"],
        "vocab_size": cfg["vocab"],
        "mask_ratio": cfg["mae_mask_ratio"],
        "decoder_depth": cfg["mae_dec_depth"],
        "decoder_heads": cfg["mae_dec_heads"],
    }
    return ModelConfig(**{**sizes, **changes})


def model_of(cfg: Mapping[str, Any], state: Mapping[str, Array], **changes: Any) -> SegCLIP:
    """The golden model with its weights."""
    model = SegCLIP(config_of(cfg, **changes))
    tensors = from_released({name: torch.tensor(array) for name, array in state.items()})
    load_tensors(model, tensors, strict=True, source="golden state")
    return model


def tokens_of(input_ids: Array) -> Tensor:
    """Token ids [B, T] of the golden [B, 1, T]."""
    return torch.tensor(input_ids).flatten(0, -2)


def noise_of(inp: Mapping[str, Array], suffix: str = "") -> InjectedNoise:
    """Injected noise; the first column of the golden masking noise belongs to the class token."""
    return InjectedNoise(
        torch.tensor(inp[f"gumbel_main{suffix}"]),
        torch.tensor(inp[f"gumbel_mae{suffix}"]),
        torch.tensor(inp["mae_rand"])[:, 1:],
    )


def superpixels_of(image_seg: Array) -> Tensor:
    """Superpixel ids [B, L] of the golden [B, 1, P, P]."""
    return torch.tensor(image_seg).flatten(1)


def arrays(values: Mapping[str, Tensor | float]) -> Arrays:
    """Tensors to NumPy."""
    return {name: np.asarray(torch.as_tensor(value).detach().cpu().numpy()) for name, value in values.items()}


# ------------------------------------------------------------------------------------------- evaluation


def vision_arrays(out: VisionOutput) -> dict[str, Tensor]:
    """Activations of the vision tower under golden names."""
    return {
        "image_embed": out.image_embed_BE,
        "image_hidden": torch.cat([out.image_embed_BE[:, None], out.center_embed_BGE], dim=1),
        "hard_attn": out.assignment.hard_BGL,
        "soft_attn": out.assignment.soft_BGL,
        "attn_logits": out.assignment.logits_BGL,
        "sem_out": out.region_tokens_BGC,
        "q_feat": out.query_BGC,
        "visual_out": torch.cat([out.pooled_BC[:, None], out.center_tokens_BGC], dim=1),
        "mid_hidden": out.mid_hidden_BLC,
        "tokens_lnpre": out.embedded_BNC,
    }


@torch.inference_mode()
def eval_outputs(
    cfg: Mapping[str, Any], state: Mapping[str, Array], inp: Mapping[str, Array], variant: str
) -> Arrays:
    """Evaluation pass at the training size."""
    model = model_of(cfg, state).eval()
    vision = model.encode_image(torch.tensor(inp["images"]))
    text = model.text(tokens_of(inp["input_ids"]), with_hidden=True)
    cosine = F.normalize(text.text_embed_BE, dim=-1) @ F.normalize(vision.image_embed_BE, dim=-1).T
    similarity = model.temperature() * cosine
    return arrays(
        {
            **vision_arrays(vision),
            "text_embed": text.text_embed_BE,
            "text_hidden": text.hidden_BTE,
            "sim_t2v": similarity,
            "sim_v2t": similarity.T,
        }
    )


@torch.inference_mode()
def eval_size(cfg: Mapping[str, Any], state: Mapping[str, Array], image: Array) -> Arrays:
    """Evaluation pass at another size."""
    model = model_of(cfg, state).eval()
    out = model.encode_image(torch.tensor(image))
    table = resample_grid(model.vision.positional_embedding, model.config.grid, out.grid)
    return arrays({**vision_arrays(out), "pos_embed": table})


# ------------------------------------------------------------------------------------------- training pass


def train_pass(
    model: SegCLIP, inp: Mapping[str, Array], images: str = "images", suffix: str = ""
) -> TrainOutput:
    """One training pass on golden inputs."""
    return model(
        torch.tensor(inp[images]),
        tokens_of(inp["input_ids"]),
        superpixels_of(inp["image_seg"]),
        noise_of(inp, suffix),
    )


def losses_of(out: TrainOutput) -> dict[str, Tensor]:
    """The three losses of a pass in one process."""
    contrastive = contrastive_loss(out.image_embed_BE, out.text_embed_BE, out.logit_scale)
    return {"contrastive": contrastive, "superpixel": out.loss_superpixel, "mae": out.loss_reconstruction}


def gradient_statistics(gradients: Mapping[str, Tensor | None], order: Array) -> Array:
    """[L2, largest, sum, product with cos(0, 1, 2, ...)] of each gradient; -1 where there is none."""
    rows = []
    for name in order:
        gradient = gradients[str(name)]
        if gradient is None:
            rows.append([-1.0] * 4)
            continue
        flat = gradient.double().flatten()
        wave = torch.arange(flat.numel(), dtype=torch.float64).cos()
        rows.append([float(flat.norm()), float(flat.abs().max()), float(flat.sum()), float(flat @ wave)])
    return np.asarray(rows)


def train_outputs(
    cfg: Mapping[str, Any], state: Mapping[str, Array], inp: Mapping[str, Array], variant: str
) -> Arrays:
    """Training pass with injected noise: activations, losses and all gradients."""
    model = model_of(cfg, state).train()
    out = train_pass(model, inp)
    losses = losses_of(out)
    total = sum(losses.values(), torch.zeros(()))
    parameters = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    result: Arrays = {}
    for name, loss in {**losses, "total": total}.items():
        found = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
        gradients: dict[str, Tensor | None] = dict.fromkeys(map(released_name, parameters))
        gradients.update(zip(map(released_name, trained), found, strict=True))
        result[f"gradstat/{name}"] = gradient_statistics(gradients, inp["gradstat_names"])
        if name == "total":
            result.update(
                {f"grad/{key}": value.numpy() for key, value in gradients.items() if value is not None}
            )
    with torch.no_grad():
        result.update(arrays(_train_activations(model, out, inp)))
        kl_1, kl_2 = superpixel_kl_sums_reference(out.hard_BGL, superpixels_of(inp["image_seg"]))
        image_BE, text_BE = (F.normalize(x, dim=-1) for x in (out.image_embed_BE, out.text_embed_BE))
        logits = out.logit_scale * text_BE @ image_BE.T
        own = torch.arange(len(logits))
        scalars = {
            "logits_t2v": logits,
            "logits_v2t": logits.T,
            "loss_ce_t2v": F.cross_entropy(logits, own),
            "loss_ce_v2t": F.cross_entropy(logits.T, own),
            "loss_contrastive": losses["contrastive"],
            "loss_kl1_sum": kl_1,
            "loss_kl2_sum": kl_2,
            "loss_superpixel": losses["superpixel"],
            "loss_mae": losses["mae"],
            "loss_total": total,
        }
    return {**result, **arrays(scalars)}


def _train_activations(model: SegCLIP, out: TrainOutput, inp: Mapping[str, Array]) -> dict[str, Tensor]:
    assert out.masked is not None
    masked, order_BL = out.masked, out.masked.order_BL
    visible = masked.hidden_BKC.shape[1]
    # Golden masking counts the class token as token 0 and always keeps it first.
    kept = F.pad(order_BL[:, :visible] + 1, (1, 0))
    restore = F.pad(order_BL.argsort(dim=1) + 1, (1, 0))
    mask = torch.ones_like(restore, dtype=torch.float32).scatter_(1, kept, 0.0)
    gathered = masked.aggregation
    return {
        **vision_arrays(out.vision),
        "text_embed": out.text_embed_BE,
        "count_main": out.hard_BGL.sum(dim=2),
        "count_mae": gathered.assignment.hard_BGL.sum(dim=2),
        "mae/mask": mask,
        "mae/ids_restore": restore,
        "mae/ids_keep": kept,
        "mae/kept_layers0_out": masked.visible_BKC,
        "mae/attn_logits": gathered.assignment.logits_BGL,
        "mae/hard_attn": gathered.assignment.hard_BGL,
        "mae/soft_attn": gathered.assignment.soft_BGL,
        "mae/sem_out": gathered.tokens_BGC,
        "mae/recon_out": masked.expanded_BKC,
        "mae/mid_hidden": masked.hidden_BKC,
        "mae/pred": model.decoder(masked.hidden_BKC, order_BL, out.vision.grid, only_masked=False),
    }


# ------------------------------------------------------------------------------------------- segmentation


@torch.inference_mode()
def seg_outputs(cfg: Mapping[str, Any], state: Mapping[str, Array], case: Mapping[str, Any]) -> Arrays:
    """Class scores and labels of one picture, in one window or many."""
    model = model_of(cfg, state).eval()
    scorer = ClassScorer(
        torch.tensor(case["text_embedding"]),
        float(model.temperature()),
        rule="softmax_times_top_k",
        top_k=5,
        threshold=case["bg_thresh"] if case["with_bg"] else None,
    )
    image = torch.tensor(case["image"])
    size = tuple(image.shape[-2:]) if case["ori_shape"] is None else tuple(int(n) for n in case["ori_shape"])
    slides = case["mode"] == "slide"
    height, width = (case["crop"], case["crop"]) if slides else image.shape[-2:]
    windows = (
        window_grid(*image.shape[-2:], case["crop"], case["stride"])
        if slides
        else [Window(0, 0, height, width)]
    )
    found = window_scores(
        model, torch.cat([image[:, :, window.rows, window.columns] for window in windows]), scorer
    )
    prediction = Prediction(
        tuple(windows),
        tuple(found.center_BHW),
        found.values_BGV,
        scorer.pixel_rule,
        tuple(image.shape[-2:]),
        size,
    )
    label = prediction.labels()[None]
    scores = prediction.scores_Chw[None]
    if slides:
        rescaled = torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return arrays({"slide_preds": scores, "slide_preds_rescaled": rescaled, "label": label})
    vision = model.encode_image(image)
    soft_map = patches_to_pixels(vision.assignment.soft_BGL, vision.grid, tuple(image.shape[-2:]))
    return arrays(
        {
            "pred_logits": scores,
            "argmax": scores.argmax(dim=1),
            "label": label,
            "attn_map": soft_map.permute(0, 2, 3, 1),
            "group_argmax": found.center_BHW.long(),
        }
    )


# ------------------------------------------------------------------------------------------- optimiser


def trainloop_outputs(
    cfg: Mapping[str, Any],
    state: Mapping[str, Array],
    inp: Mapping[str, Array],
    variant: str,
    accumulate: int = 1,
) -> Arrays:
    """Updates of the original's recipe, each from ``accumulate`` batches with negatives of their own."""
    model = model_of(cfg, state).train()
    freeze(model, frozen_parameters(RECIPE, model.config))
    optimizer = build_optimizer(model, RECIPE)
    batches = len({name.split("/")[0] for name in inp if name.startswith("batch")})
    released = to_released(dict(model.named_parameters()))
    names = list(state)

    def lengths() -> list[float]:
        return [float(released[name].detach().double().norm()) for name in names]

    losses, norms, params, rates = [], [], [lengths()], []
    for number in range(batches):
        batch = {name.removeprefix(f"batch{number}/"): value for name, value in inp.items()}
        out = train_pass(model, batch, "image", str(number))
        loss = sum(losses_of(out).values(), torch.zeros(()))
        (loss / accumulate).backward()
        losses.append(float(loss.detach()))
        if (number + 1) % accumulate:
            continue
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)))
        factor = learning_rate_factor((len(rates) + 1) / STEPS, "cosine", WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        rates.append(sorted({group["lr"] for group in optimizer.param_groups}))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        params.append(lengths())
    centers = "clip.visual.transformer.semantic_layer2.semantic_center"
    adam = optimizer.state[released[centers]]
    return {
        "loss": np.asarray(losses),
        "epoch_loss": np.asarray(np.mean(losses)),
        "grad_norm_preclip": np.asarray(norms),
        "param_l2_f64": np.asarray(params),
        "lr_set_f64": np.asarray(rates),
        "param_names": np.asarray(names),
        **{f"final/{name}": released[name].detach().numpy() for name in names},
        "adam/semantic_center.exp_avg": adam["exp_avg"].numpy(),
        "adam/semantic_center.exp_avg_sq": adam["exp_avg_sq"].numpy(),
        "adam/semantic_center.step": np.asarray(int(adam["step"])),
    }


def schedule_outputs(inp: Mapping[str, Array]) -> Arrays:
    """Learning-rate factors over a run of 100 steps."""

    def over(*arguments: Any) -> Array:
        return np.asarray([learning_rate_factor(step / 100, *arguments) for step in range(101)])

    rate = [RECIPE.lr * learning_rate_factor(step / 100, "cosine", WARMUP) for step in range(1, 101)]
    return {
        "warmup_cosine_default_f64": over("cosine", WARMUP),
        "warmup_cosine_startend_f64": over("cosine", WARMUP, 0.1, 0.01),
        "warmup_cosine_nowarm_f64": over("cosine", -1),
        "warmup_cosine_w0_f64": over("cosine", 0.0),
        "warmup_linear_f64": over("linear", WARMUP),
        "warmup_constant_f64": over("constant", WARMUP),
        "adaptadamw_lr_steps1to100_f64": np.asarray(rate),
    }


class _TwoLayers(torch.nn.Module):
    """The small problem of the golden trajectories."""

    def __init__(self, w: Array, b: Array, u: Array) -> None:
        super().__init__()
        self.w, self.bias, self.u = (torch.nn.Parameter(torch.tensor(x)) for x in (w, b, u))

    def forward(self, x: Tensor, y: Tensor, with_u: bool) -> Tensor:
        error = x @ self.w + self.bias - y
        if with_u:
            error = (x @ self.w + self.bias) * (1 + 0.1 * self.u.tanh()) - y
        return 0.5 * error.square().sum(dim=1).mean()


def traj_outputs(inp: Mapping[str, Array], name: str) -> Arrays:
    """20 updates of a small problem; a parameter without a gradient is passed over and its schedule waits."""
    problem = _TwoLayers(inp["w0"], inp["b0"], inp["u0"])
    total = int(inp["t_total"])
    start, end = (0.1, 0.05) if name == "traj_startend" else (0.0, 0.0)
    optimizer = build_optimizer(problem, RECIPE.model_copy(update={"lower_lr": None}))
    for group in optimizer.param_groups:
        # Two rates, by decay: the golden problem's own, which no setting of ours makes.
        group["base_lr"] = float(inp["group_lr"][0 if group["weight_decay"] else 1])
    if not inp["u_has_grad"].all():
        # The original's schedule counts updates of each parameter by itself, ours steps of the run. They differ
        # only for a parameter that some steps leave without a gradient, for which a group of its own is needed.
        optimizer.param_groups[:] = [
            {**group, "params": [parameter]}
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
    record: dict[str, list[Array]] = {key: [] for key in ("w", "b", "u", "gw", "gb", "gu", "loss")}
    for x, y, with_u in zip(inp["X"], inp["Y"], inp["u_has_grad"], strict=True):
        loss = problem(torch.tensor(x), torch.tensor(y), bool(with_u))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        record["loss"].append(loss.detach().numpy())
        for key, parameter in zip("wbu", problem.parameters(), strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            record[f"g{key}"].append(gradient.numpy().copy())
        for group in optimizer.param_groups:
            updates = int(optimizer.state[group["params"][0]].get("step", 0)) + 1
            # Without a length the original keeps the rate; our runs always have one.
            factor = learning_rate_factor(updates / total, "cosine", WARMUP, start, end) if total > 0 else 1.0
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        for key, parameter in zip("wbu", problem.parameters(), strict=True):
            record[key].append(parameter.detach().numpy().copy())
    adam = optimizer.state[problem.w]
    return {
        **{key: np.stack(values) for key, values in record.items()},
        "exp_avg_w": adam["exp_avg"].numpy(),
        "exp_avg_sq_w": adam["exp_avg_sq"].numpy(),
        "step_w_b_u": np.asarray([int(optimizer.state[p]["step"]) for p in problem.parameters()]),
        **{key: inp[key] for key in ("X", "Y", "w0", "b0", "u0", "group_lr", "t_total", "u_has_grad")},
    }


# ------------------------------------------------------------------------------------------- superpixels


def superpixel_case(map_HW: Array, coord: Array, img_size: int, patch_size: int) -> Array:
    """Mean superpixel id of each patch, for several crops of a map given by relative corners x0, y0, x1, y1."""
    return np.stack([original_patch_labels(map_HW, corners, img_size, patch_size) for corners in coord])


def original_patch_labels(
    map_HW: NDArray[np.integer], corners: NDArray[np.floating], image_size: int, patch_size: int
) -> NDArray[np.int64]:
    """Patch ids as the original code computes them from a map and the corners of a crop.

    Args:
        map_HW: ids [H, W].
        corners: (left, top, right, bottom) as shares of the picture; right < left says that it was mirrored,
            bottom < top that it was turned upside down.
        image_size: side of the square crop in pixels.
        patch_size: side of a patch, which divides it.

    Returns:
        int64 [image_size // patch_size, image_size // patch_size]: rows of patches.
    """
    height, width = map_HW.shape
    left, right = sorted((float(corners[0]), float(corners[2])))
    top, bottom = sorted((float(corners[1]), float(corners[3])))
    rows = slice(int(top * height), math.ceil(bottom * height))
    columns = slice(int(left * width), math.ceil(right * width))
    cut_HW = map_HW[rows, columns]
    if min(cut_HW.shape) < 2:
        cut_HW = map_HW
    if corners[2] < corners[0]:
        cut_HW = cut_HW[:, ::-1]
    if corners[3] < corners[1]:
        cut_HW = cut_HW[::-1]
    # Its nearest resize takes the pixel at the upper left of each target pixel, not the one under its centre.
    steps = np.arange(image_size)
    large_HW = cut_HW[(steps * cut_HW.shape[0] // image_size)[:, None], steps * cut_HW.shape[1] // image_size]
    side = image_size // patch_size
    return patch_labels(large_HW, (side, side), "mean").reshape(side, side)
