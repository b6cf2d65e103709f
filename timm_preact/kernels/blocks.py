"""Triton's kernels that train R small networks at once: convolutions with the norms, ReLUs and additions around them.

A map is stored as (R, G, n, H, W, C): replicas, BatchNorm groups, images of a group. Axis 1 of every grid is r * G + g,
so that one launch serves all replicas, each with its own weights, and every group has its own statistics.

A row of a convolution's matrix product is a block of BH x BW pixels: its window of (BH + 2) rows, each (BW + 2) * C
neighbours in memory, meets a weight that was laid out for it with zeros between (`expand_kernel`), so that even 16
channels fill a tensor core. What is read goes through its norm and ReLU on the way (prologue: nothing of that is
stored); what is written takes in the shortcut, and its statistics (epilogue).

Sums over pixels are made in two steps: each program writes those of its tile, and the program that ends last adds them
up in their order and writes what the next kernel wants of them. No number depends on which program was faster, nor on
R. Of statistics a norm has five rows of C numbers a group: mean, variance, 1 / deviation, scale, shift; of its backward
another five: the factors of the gradient, of x - mean and 1 in the gradient of x, and those of weight and bias.
"""
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterable

import triton
import triton.language as tl

__all__ = [
    'augment_kernel', 'average_kernel', 'classifier_kernel', 'compile_side_by_side', 'convolution_backward_kernel',
    'convolution_kernel', 'expand_kernel', 'fixed_statistics_kernel', 'head_backward_kernel', 'logits_kernel',
    'merge_backward_kernel', 'merge_kernel', 'norm_backward_kernel', 'norms_kernel', 'pool_kernel',
    'reduce_weight_kernel', 'sgd_kernel', 'weight_kernel',
]

ROWS = tl.constexpr(5)  # that a norm has of statistics, and of their gradients


def compile_side_by_side(launches: Iterable[Any]) -> None:
    """Compile for a GPU what launches need, on all cores: a network has some fifty kernels of a second or two each.

    Args:
        launches: With a `kernel`, its `grid`, its `args` and its `constants`.
    """
    if not hasattr(triton, 'AsyncCompileMode'):  # then each is compiled when it first runs
        return
    with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool):
        for launch in launches:
            launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.constants)


@triton.jit
def relu(z):
    return tl.where(z <= 0.0, 0.0, z)  # NaN stays NaN


@triton.jit
def through(v, coef, c, C: tl.constexpr, NORM: tl.constexpr, RELU: tl.constexpr):
    """v of channels c through a norm and a ReLU."""
    if NORM:
        v = v * tl.load(coef + 3 * C + c) + tl.load(coef + 4 * C + c)
    if RELU:
        v = relu(v)
    return v


@triton.jit
def is_last(counter, programs):
    """Whether all other programs have stored what this one may read then."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem='acq_rel') == programs - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def add_up(partial, tiles, c, C: tl.constexpr, TB: tl.constexpr):
    """Sums over the tiles of partial (tiles, 2, C)."""
    s = tl.zeros(c.shape, tl.float32)
    q = tl.zeros(c.shape, tl.float32)
    for start in range(0, tiles, TB):
        t = start + tl.arange(0, TB)
        o = partial + t[:, None] * (2 * C) + c[None, :]
        ok = (t < tiles)[:, None] & (c >= 0)[None, :]
        s += tl.sum(tl.load(o, mask=ok, other=0.0, cache_modifier='.cg'), 0)
        q += tl.sum(tl.load(o + C, mask=ok, other=0.0, cache_modifier='.cg'), 0)
    return s, q


@triton.jit
def of_channels(v, PIXELS: tl.constexpr, C: tl.constexpr):
    """Sum over rows of v (rows, PIXELS * C), and over its PIXELS: (C,)."""
    return tl.sum(tl.reshape(tl.sum(v, 0), (PIXELS, C)), 0)


@triton.jit
def statistics_of_tile(v, inside, count, partial, tile, c, PIXELS: tl.constexpr, CB: tl.constexpr, C: tl.constexpr):
    """Store sum and sum of squares around the mean of v (rows, PIXELS * CB) over the rows inside, `count` pixels."""
    s = of_channels(tl.where(inside[:, None], v, 0.0), PIXELS, CB)
    mean = tl.reshape(tl.broadcast_to((s / count)[None, :], (PIXELS, CB)), (PIXELS * CB,))
    d = tl.where(inside[:, None], v - mean[None, :], 0.0)
    tl.store(partial + tile * (2 * C) + c, s)
    tl.store(partial + tile * (2 * C) + C + c, of_channels(d * d, PIXELS, CB))


@triton.jit
def load_sums(partial, start, tiles, size, total, c, C: tl.constexpr, TB: tl.constexpr):
    """Sums, squares and pixels of TB tiles from `start` on, 0 (pixels: 1) behind the last."""
    t = start + tl.arange(0, TB)
    o = partial + t[:, None] * (2 * C) + c[None, :]
    ok = (t < tiles)[:, None] & (c >= 0)[None, :]
    count = tl.maximum(tl.minimum(size, total - t * size), 1).to(tl.float32)[:, None]
    return (tl.load(o, mask=ok, other=0.0, cache_modifier='.cg'),
            tl.load(o + C, mask=ok, other=0.0, cache_modifier='.cg'), count, ok)


@triton.jit
def finish_statistics(partial, tiles, size, total, gamma, beta, coef, eps, c, C: tl.constexpr, TB: tl.constexpr,
                      ONCE: tl.constexpr):
    """Of `total` pixels in tiles of `size`, the last one smaller: what a norm makes of them. ONCE: TB tiles are all."""
    if ONCE:
        s, q, count, ok = load_sums(partial, 0, tiles, size, total, c, C, TB)
        mean = tl.sum(s, 0) / total
        d = s / count - mean[None, :]
        square = tl.sum(tl.where(ok, q + count * d * d, 0.0), 0)
    else:
        mean, _ = add_up(partial, tiles, c, C, TB)
        mean = mean / total
        square = tl.zeros(c.shape, tl.float32)
        for start in range(0, tiles, TB):
            s, q, count, ok = load_sums(partial, start, tiles, size, total, c, C, TB)
            d = s / count - mean[None, :]
            square += tl.sum(tl.where(ok, q + count * d * d, 0.0), 0)
    store_statistics(coef, mean, square / total, tl.load(gamma + c), tl.load(beta + c), eps, c, C)


@triton.jit
def store_statistics(coef, mean, var, gamma, beta, eps, c, C: tl.constexpr):
    rstd = 1.0 / tl.sqrt(var + eps)
    tl.store(coef + c, mean)
    tl.store(coef + C + c, var)
    tl.store(coef + 2 * C + c, rstd)
    tl.store(coef + 3 * C + c, gamma * rstd)
    tl.store(coef + 4 * C + c, beta - mean * gamma * rstd)


@triton.jit
def finish_backward(partial, tiles, total, coef, gamma, back, c, C: tl.constexpr, TB: tl.constexpr):
    """From the sums of dz and dz * (x - mean): the factors of dz, of x - mean and 1, and both parameters' gradients."""
    s, q = add_up(partial, tiles, c, C, TB)
    rstd = tl.load(coef + 2 * C + c)
    a = tl.load(gamma + c) * rstd
    tl.store(back + c, a)
    tl.store(back + C + c, -a * rstd * rstd * q / total)
    tl.store(back + 2 * C + c, -a * s / total)
    tl.store(back + 3 * C + c, q * rstd)
    tl.store(back + 4 * C + c, s)


@triton.jit
def first_pixels(m, H: tl.constexpr, W: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """Image, row and column where blocks begin, of maps cut into BH x BW pixels."""
    return m // ((H // BH) * (W // BW)), (m // (W // BW)) % (H // BH) * BH, m % (W // BW) * BW


@triton.jit
def windows_of_gradient(h, w, inside, S: tl.constexpr, KS: tl.constexpr):
    """Where in the gradient of a convolution's output the windows of its input's blocks begin, and which have one."""
    if S == 1:
        return h - KS // 2, w - KS // 2, inside
    elif KS == 1:
        return h // S, w // S, inside & (h % S == 0) & (w % S == 0)
    else:
        return h // S, w // S, inside


@triton.jit
def gather(x, t, img, h, w, k, inside, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, TW: tl.constexpr,
           KS: tl.constexpr, K: tl.constexpr):
    """Tap t of the windows that begin at pixels (h, w), (rows, K), and what of it lies in the image."""
    if KS == 1:
        o = ((img * H + h) * W + w) * C + t * K
        ok = inside[:, None] & (k >= 0)[None, :]
    else:
        h += t // TW
        w += t % TW
        column = w[:, None] + (k // C)[None, :]
        o = ((img * H + h) * W + w) * C
        ok = (inside & (h >= 0) & (h < H))[:, None] & (column >= 0) & (column < W)
    return tl.load(x + (o[:, None] + k[None, :]), mask=ok, other=0.0), ok


@triton.jit
def shortcut_offsets(img, h, w, c, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, STRIDE: tl.constexpr):
    """Where option A finds channel c of pixel (h, w) of an (H, W) map in a map of C channels, and whether."""
    return ((img * (H * STRIDE) + h * STRIDE) * (W * STRIDE) + w * STRIDE) * C + c, c < C


@triton.jit(do_not_specialize=['measure'])
def convolution_kernel(
        x, x_coef, weight, y, y_coef, gamma, beta, plus, plus_coef, partial, counter, P, WE, images, eps, measure,
        G: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, S: tl.constexpr,
        KS: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
        TW: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, RELU: tl.constexpr, PLUS: tl.constexpr,
        PLUS_NORM: tl.constexpr, PLUS_RELU: tl.constexpr, PC: tl.constexpr, PS: tl.constexpr, STATS: tl.constexpr,
        TB: tl.constexpr, ONCE: tl.constexpr):
    """y = conv(relu(norm(x))) + plus, and, to `measure` and with STATS, the statistics of y.

    H, W are y's; PLUS: 0 none, 1 a map as y, 2 option A.
    """
    N: tl.constexpr = BH * BW * CO
    CB: tl.constexpr = BN // (BH * BW)
    HI: tl.constexpr = H * S
    WI: tl.constexpr = W * S
    dt: tl.constexpr = y.dtype.element_ty
    rg = tl.program_id(1)
    r = rg // G
    rows = images * ((H // BH) * (W // BW))
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = m < rows
    img, h, w = first_pixels(m, H, W, BH, BW)
    k = tl.arange(0, K)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    x += rg * (images * HI * WI * CI)
    x_coef += rg * (ROWS * CI)
    weight += r * WE
    if NORM and KS > 1:
        scale = tl.load(x_coef + 3 * CI + k % CI)[None, :]
        shift = tl.load(x_coef + 4 * CI + k % CI)[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for t in range(T):
        a, ok = gather(x, t, img, h * S - KS // 2, w * S - KS // 2, k, inside, HI, WI, CI, TW, KS, K)
        if NORM or RELU:
            z = a.to(tl.float32)
            if NORM:
                if KS == 1:
                    scale = tl.load(x_coef + 3 * CI + t * K + k)[None, :]
                    shift = tl.load(x_coef + 4 * CI + t * K + k)[None, :]
                z = z * scale + shift
            if RELU:
                z = relu(z)
            a = tl.where(ok, z, 0.0).to(dt)
        b = tl.load(weight + t * (K * N) + k[:, None] * N + n[None, :])
        acc = tl.dot(a, b, acc, input_precision='ieee')
    c = n % CO
    hn = n // (BW * CO)
    wn = n // CO % BW
    o = (((img * H + h) * W + w) * CO)[:, None] + (hn * (W * CO) + wn * CO + c)[None, :]
    ok = inside[:, None] & (n >= 0)[None, :]
    plus_coef += rg * (ROWS * PC)
    if PLUS == 1:
        v = tl.load(plus + rg * (images * H * W * CO) + o, mask=ok, other=0.0).to(tl.float32)
        acc += through(v, plus_coef, c, CO, PLUS_NORM, PLUS_RELU).to(dt).to(tl.float32)
    if PLUS == 2:
        po, kept = shortcut_offsets(img[:, None], h[:, None] + hn[None, :], w[:, None] + wn[None, :], c[None, :],
                                    H, W, PC, PS)
        kept = kept & ok
        v = tl.load(plus + rg * (images * (H * PS) * (W * PS) * PC) + po, mask=kept, other=0.0).to(tl.float32)
        v = through(v, plus_coef, c % PC, PC, PLUS_NORM, PLUS_RELU).to(dt).to(tl.float32)
        acc += tl.where(kept, v, 0.0)
    stored = acc.to(dt)
    tl.store(y + rg * (images * H * W * CO) + o, stored, mask=ok)
    if STATS and measure != 0:
        tiles = tl.num_programs(0)
        channels = tl.program_id(2) * CB + tl.arange(0, CB)
        partial += rg * (tiles * 2 * CO)
        count = tl.minimum(BM, rows - tl.program_id(0) * BM) * (BH * BW)
        statistics_of_tile(stored.to(tl.float32), inside, count, partial, tl.program_id(0), channels, BH * BW, CB, CO)
        if is_last(counter + rg * tl.num_programs(2) + tl.program_id(2), tiles):
            finish_statistics(partial, tiles, BM * BH * BW, images * H * W, gamma + r * P, beta + r * P,
                              y_coef + rg * (ROWS * CO), eps, channels, CO, TB, ONCE)


@triton.jit
def convolution_backward_kernel(
        dy, weight, dx, x, x_coef, back, gamma, add, raw, partial, counter, P, WE, images,
        G: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, S: tl.constexpr,
        KS: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
        TW: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, RELU: tl.constexpr, FINISH: tl.constexpr,
        ADD: tl.constexpr, AC: tl.constexpr, AS: tl.constexpr, RAW: tl.constexpr, TB: tl.constexpr):
    """The gradient of a convolution with respect to what it read; H, W are of its input.

    ADD: what else reads that gives its gradient, 1 a map as dx, 2 of an option A with AC channels and stride AS.
    FINISH: nothing else does. Then dx is the gradient before the ReLU, with the sums that the norm's backward wants;
    or, where no norm precedes, with the gradient `raw` of those that read x itself (RAW).
    """
    N: tl.constexpr = BH * BW * CI
    CB: tl.constexpr = BN // (BH * BW)
    HO: tl.constexpr = H // S
    WO: tl.constexpr = W // S
    dt: tl.constexpr = dx.dtype.element_ty
    rg = tl.program_id(1)
    r = rg // G
    rows = images * ((H // BH) * (W // BW))
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = m < rows
    img, h, w = first_pixels(m, H, W, BH, BW)
    k = tl.arange(0, K)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    dy += rg * (images * HO * WO * CO)
    weight += r * WE
    ho, wo, reads = windows_of_gradient(h, w, inside, S, KS)
    acc = tl.zeros((BM, BN), tl.float32)
    for t in range(T):
        g, _ = gather(dy, t, img, ho, wo, k, reads, HO, WO, CO, TW, KS, K)
        b = tl.load(weight + t * (K * N) + k[:, None] * N + n[None, :])
        acc = tl.dot(g, b, acc, input_precision='ieee')
    c = n % CI
    hn = n // (BW * CI)
    wn = n // CI % BW
    o = rg * (images * H * W * CI) + (((img * H + h) * W + w) * CI)[:, None] + (hn * (W * CI) + wn * CI + c)[None, :]
    ok = inside[:, None] & (n >= 0)[None, :]
    if ADD == 1:
        acc += tl.load(add + o, mask=ok, other=0.0).to(tl.float32)
    if ADD == 2:
        ha = h[:, None] + hn[None, :]
        wa = w[:, None] + wn[None, :]
        ao = ((img[:, None] * (H // AS) + ha // AS) * (W // AS) + wa // AS) * AC + c[None, :]
        chosen = ok & (ha % AS == 0) & (wa % AS == 0)
        acc += tl.load(add + rg * (images * (H // AS) * (W // AS) * AC) + ao, mask=chosen, other=0.0).to(tl.float32)
    if FINISH:
        if NORM or RELU:
            v = tl.load(x + o, mask=ok, other=0.0).to(tl.float32)
            x_coef += rg * (ROWS * CI)
            if RELU:
                acc = tl.where(through(v, x_coef, c, CI, NORM, False) > 0.0, acc, 0.0)
        if RAW:
            acc += tl.load(raw + o, mask=ok, other=0.0).to(tl.float32)
    stored = acc.to(dt)
    tl.store(dx + o, stored, mask=ok)
    if FINISH and NORM:
        tiles = tl.num_programs(0)
        channels = tl.program_id(2) * CB + tl.arange(0, CB)
        partial += rg * (tiles * 2 * CI)
        g = tl.where(ok, stored.to(tl.float32), 0.0)
        d = v - tl.load(x_coef + c)[None, :]
        at = partial + tl.program_id(0) * (2 * CI) + channels
        tl.store(at, of_channels(g, BH * BW, CB))
        tl.store(at + CI, of_channels(g * d, BH * BW, CB))
        if is_last(counter + rg * tl.num_programs(2) + tl.program_id(2), tiles):
            finish_backward(partial, tiles, images * H * W, x_coef, gamma + r * P, back + rg * (ROWS * CI), channels,
                            CI, TB)


@triton.jit
def norm_backward_kernel(dz, x, x_coef, back, raw, dx, pixels, C: tl.constexpr, BM: tl.constexpr, RAW: tl.constexpr):
    """A norm's backward from the gradient of what it made, and the gradient `raw` of those that read x itself."""
    rg = tl.program_id(1)
    c = tl.arange(0, C)
    back += rg * (ROWS * C)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    ok = (m < pixels)[:, None] & (c >= 0)[None, :]
    o = rg * (pixels * C) + m[:, None] * C + c[None, :]
    d = tl.load(x + o, mask=ok, other=0.0).to(tl.float32) - tl.load(x_coef + rg * (ROWS * C) + c)[None, :]
    g = tl.load(dz + o, mask=ok, other=0.0).to(tl.float32) * tl.load(back + c)[None, :]
    g += d * tl.load(back + C + c)[None, :] + tl.load(back + 2 * C + c)[None, :]
    if RAW:
        g += tl.load(raw + o, mask=ok, other=0.0).to(tl.float32)
    tl.store(dx + o, g.to(dx.dtype.element_ty), mask=ok)


@triton.jit
def weight_kernel(
        dy, x, x_coef, partial, images, tiles, G: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr,
        CO: tl.constexpr, S: tl.constexpr, KS: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
        T: tl.constexpr, TW: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr, NORM: tl.constexpr,
        RELU: tl.constexpr):
    """A convolution's gradient with respect to its weight as the backward kernel has it laid out: partial (r * G + g,
    programs, T, BH * BW * CI, K). A program adds up every num_programs(0)-th tile, for TAPS taps from TAPS *
    program_id(2) on."""
    NI: tl.constexpr = BH * BW * CI
    HO: tl.constexpr = H // S
    WO: tl.constexpr = W // S
    dt: tl.constexpr = x.dtype.element_ty
    rg = tl.program_id(1)
    first = tl.program_id(2) * TAPS
    k = tl.arange(0, K)
    n = tl.arange(0, NI)
    rows = images * ((H // BH) * (W // BW))
    dy += rg * (images * HO * WO * CO)
    x += rg * (images * H * W * CI)
    x_coef += rg * (ROWS * CI)
    c = n % CI
    at = n // (BW * CI) * (W * CI) + n % (BW * CI)
    acc0 = tl.zeros((NI, K), tl.float32)
    if TAPS > 1:
        acc1 = tl.zeros((NI, K), tl.float32)
    if TAPS > 2:
        acc2 = tl.zeros((NI, K), tl.float32)
    if TAPS > 3:
        acc3 = tl.zeros((NI, K), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        m = tile * BM + tl.arange(0, BM)
        inside = m < rows
        img, h, w = first_pixels(m, H, W, BH, BW)
        ok = inside[:, None] & (n >= 0)[None, :]
        v = tl.load(x + ((((img * H + h) * W + w) * CI)[:, None] + at[None, :]), mask=ok, other=0.0)
        if NORM or RELU:
            z = through(v.to(tl.float32), x_coef, c, CI, NORM, RELU)
            v = tl.where(ok, z, 0.0).to(dt)
        v = tl.trans(v)
        ho, wo, reads = windows_of_gradient(h, w, inside, S, KS)
        for tap in tl.static_range(TAPS):
            g, _ = gather(dy, first + tap, img, ho, wo, k, reads, HO, WO, CO, TW, KS, K)
            if tap == 0:
                acc0 = tl.dot(v, g, acc0, input_precision='ieee')
            if tap == 1:
                acc1 = tl.dot(v, g, acc1, input_precision='ieee')
            if tap == 2:
                acc2 = tl.dot(v, g, acc2, input_precision='ieee')
            if tap == 3:
                acc3 = tl.dot(v, g, acc3, input_precision='ieee')
    o = partial + ((rg * tl.num_programs(0) + tl.program_id(0)) * T + first) * (NI * K)
    o = o + (n * K)[:, None] + k[None, :]
    tl.store(o, acc0)
    if TAPS > 1:
        tl.store(o + NI * K, acc1)
    if TAPS > 2:
        tl.store(o + 2 * NI * K, acc2)
    if TAPS > 3:
        tl.store(o + 3 * NI * K, acc3)


@triton.jit
def reduce_weight_kernel(
        partial, dw, P, parts, CI: tl.constexpr, CO: tl.constexpr, S: tl.constexpr, KS: tl.constexpr,
        BH: tl.constexpr, BW: tl.constexpr, TW: tl.constexpr, T: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
        PB: tl.constexpr):
    """dw (KS, KS, CI, CO) of a replica: of each weight, what the block's pixels and all `parts` programs have."""
    NI: tl.constexpr = BH * BW * CI
    r = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < KS * KS * CI * CO
    co = i % CO
    ci = i // CO % CI
    ky = i // (CO * CI * KS)
    kx = i // (CO * CI) % KS
    total = tl.zeros((BLOCK,), tl.float32)
    for pixel in tl.static_range(BH * BW):
        by = pixel // BW
        bx = pixel % BW
        if KS == 1:
            t = co // K
            k = co % K
            found = ok
        elif S == 1:
            row = by + KS // 2 + 1 - ky
            column = bx + KS // 2 + 1 - kx
            t = row * TW + (column if TW > 1 else 0)
            k = co if TW > 1 else column * CO + co
            found = ok
        else:
            row = (by + 1 - ky) // 2
            column = (bx + 1 - kx) // 2
            found = ok & (by + 1 >= ky) & (bx + 1 >= kx) & ((by + 1 - ky) % 2 == 0) & ((bx + 1 - kx) % 2 == 0)
            t = row
            k = column * CO + co
        o = t * (NI * K) + (pixel * CI + ci) * K + k
        for start in range(0, parts, PB):
            p = start + tl.arange(0, PB)
            at = (r * parts + p) * (T * NI * K)
            total += tl.sum(tl.load(partial + at[:, None] + o[None, :], mask=(p < parts)[:, None] & found[None, :],
                                    other=0.0), 0)
    tl.store(dw + r * P + i, total, mask=ok)


@triton.jit
def merge_factors(z, bias, scales, seeds, p, rg, m, c, o, ok, unit, pixels, G: tl.constexpr, C: tl.constexpr,
                  GATE: tl.constexpr, DROP: tl.constexpr):
    """What multiplies h and F: constants of the replica, a gate's values, or a mask with what is left scaled up."""
    of_h = tl.load(scales + 2 * (rg // G))
    of_f = tl.load(scales + 2 * (rg // G) + 1)
    if GATE > 0:
        g = tl.sigmoid(tl.load(z + o, mask=ok, other=0.0).to(tl.float32) + tl.load(bias + c)[None, :])
        of_h = 1.0 - g
        if GATE == 2:
            of_f = g
    if DROP:
        at = (unit * G + rg % G) * (pixels * C) + m[:, None] * C + c[None, :]
        of_h = tl.where(tl.rand(tl.load(seeds + rg // G), at) >= p, 1.0 / (1.0 - p), 0.0)
    return of_h, of_f


@triton.jit
def load_shortcut(h, h_coef, rg, m, c, o, ok, pixels, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
                  PAD: tl.constexpr, HC: tl.constexpr, HS: tl.constexpr, NORM: tl.constexpr, RELU: tl.constexpr):
    h_coef += rg * (ROWS * HC)
    if PAD:
        img = m // (H * W)
        at, kept = shortcut_offsets(img[:, None], (m // W % H)[:, None], (m % W)[:, None], c[None, :], H, W, HC, HS)
        kept = kept & ok
        v = tl.load(h + rg * (pixels * HS * HS * HC) + at, mask=kept, other=0.0).to(tl.float32)
        return tl.where(kept, through(v, h_coef, c % HC, HC, NORM, RELU), 0.0)
    else:
        v = tl.load(h + o, mask=ok, other=0.0).to(tl.float32)
        return through(v, h_coef, c, C, NORM, RELU)


@triton.jit(do_not_specialize=['unit', 'measure'])
def merge_kernel(
        h, h_coef, f, f_coef, z, bias, scales, seeds, y, y_coef, gamma, beta, partial, counter, P, pixels, eps, p,
        unit, measure, G: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BM: tl.constexpr,
        PAD: tl.constexpr, HC: tl.constexpr, HS: tl.constexpr, H_NORM: tl.constexpr, H_RELU: tl.constexpr,
        F: tl.constexpr, F_NORM: tl.constexpr, F_RELU: tl.constexpr, GATE: tl.constexpr, DROP: tl.constexpr,
        STATS: tl.constexpr, TB: tl.constexpr, ONCE: tl.constexpr):
    """y = of_h * h + of_f * F, each through its norm and ReLU, h by option A if PAD; without F y is h.

    Dropout of probability p has `unit`'s own masks. To `measure` and with STATS, y's statistics are made too.
    """
    rg = tl.program_id(1)
    r = rg // G
    c = tl.arange(0, C)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = m < pixels
    ok = inside[:, None] & (c >= 0)[None, :]
    o = rg * (pixels * C) + m[:, None] * C + c[None, :]
    v = load_shortcut(h, h_coef, rg, m, c, o, ok, pixels, H, W, C, PAD, HC, HS, H_NORM, H_RELU)
    if F:
        of_h, of_f = merge_factors(z, bias + r * P, scales, seeds, p, rg, m, c, o, ok, unit, pixels, G, C, GATE, DROP)
        u = tl.load(f + o, mask=ok, other=0.0).to(tl.float32)
        v = of_h * v + of_f * through(u, f_coef + rg * (ROWS * C), c, C, F_NORM, F_RELU)
    stored = v.to(y.dtype.element_ty)
    tl.store(y + o, stored, mask=ok)
    if STATS and measure != 0:
        tiles = tl.num_programs(0)
        partial += rg * (tiles * 2 * C)
        count = tl.minimum(BM, pixels - tl.program_id(0) * BM)
        statistics_of_tile(stored.to(tl.float32), inside, count, partial, tl.program_id(0), c, 1, C, C)
        if is_last(counter + rg, tiles):
            finish_statistics(partial, tiles, BM, pixels, gamma + r * P, beta + r * P, y_coef + rg * (ROWS * C), eps, c,
                              C, TB, ONCE)


@triton.jit
def store_sums(partial, which, tile, tiles, g, d, ok, c, rg, C: tl.constexpr):
    partial += (which * tl.num_programs(1) + rg) * (tiles * 2 * C) + tile * (2 * C) + c
    tl.store(partial, tl.sum(tl.where(ok, g, 0.0), 0))
    tl.store(partial + C, tl.sum(tl.where(ok, g * d, 0.0), 0))


@triton.jit(do_not_specialize=['unit'])
def merge_backward_kernel(
        dy, h, h_coef, h_back, h_gamma, dh, f, f_coef, f_back, f_gamma, df, z, bias, dz, bias_back, scales, seeds,
        partial, counter, P, pixels, p, unit, G: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
        BM: tl.constexpr, PAD: tl.constexpr, HC: tl.constexpr, HS: tl.constexpr, H_NORM: tl.constexpr,
        H_RELU: tl.constexpr, F_NORM: tl.constexpr, F_RELU: tl.constexpr, GATE: tl.constexpr, DROP: tl.constexpr,
        WRITE_H: tl.constexpr, H_SUMS: tl.constexpr, WRITE_F: tl.constexpr, TB: tl.constexpr):
    """Gradients of h (as of the map y, WRITE_H), of F before its ReLU (WRITE_F) and of a gate before its bias; with the
    sums that the backward of F's norm wants, of h's (H_SUMS), and the gradient of a gate's bias."""
    rg = tl.program_id(1)
    r = rg // G
    c = tl.arange(0, C)
    tile = tl.program_id(0)
    tiles = tl.num_programs(0)
    m = tile * BM + tl.arange(0, BM)
    ok = (m < pixels)[:, None] & (c >= 0)[None, :]
    o = rg * (pixels * C) + m[:, None] * C + c[None, :]
    dt: tl.constexpr = dy.dtype.element_ty
    g = tl.load(dy + o, mask=ok, other=0.0).to(tl.float32)
    of_h, of_f = merge_factors(z, bias + r * P, scales, seeds, p, rg, m, c, o, ok, unit, pixels, G, C, GATE, DROP)
    h_coef_here = h_coef + rg * (ROWS * HC)
    f_coef += rg * (ROWS * C)
    gh = g * of_h
    gf = g * of_f
    if F_NORM or F_RELU or GATE == 2:
        u = tl.load(f + o, mask=ok, other=0.0).to(tl.float32)
        before = through(u, f_coef, c, C, F_NORM, False)
        if F_RELU:
            gf = tl.where(before > 0.0, gf, 0.0)
    if GATE > 0:
        slope = -load_shortcut(h, h_coef, rg, m, c, o, ok, pixels, H, W, C, PAD, HC, HS, H_NORM, H_RELU)
        if GATE == 2:
            slope += relu(before) if F_RELU else before
        slope = g * slope * of_h * (1.0 - of_h)
        tl.store(dz + o, slope.to(dt), mask=ok)
        store_sums(partial, 0, tile, tiles, slope.to(dt).to(tl.float32), 0.0, ok, c, rg, C)
    if WRITE_H:
        tl.store(dh + o, gh.to(dt), mask=ok)
    if H_SUMS:
        v = tl.load(h + o, mask=ok, other=0.0).to(tl.float32)
        store_sums(partial, 1, tile, tiles, gh.to(dt).to(tl.float32), v - tl.load(h_coef_here + c)[None, :], ok, c, rg,
                   C)
    if WRITE_F:
        tl.store(df + o, gf.to(dt), mask=ok)
    if F_NORM:
        store_sums(partial, 2, tile, tiles, gf.to(dt).to(tl.float32), u - tl.load(f_coef + c)[None, :], ok, c, rg, C)
    if GATE > 0 or H_SUMS or F_NORM:
        if is_last(counter + rg, tiles):
            if GATE > 0:
                s, q = add_up(partial + rg * (tiles * 2 * C), tiles, c, C, TB)
                tl.store(bias_back + rg * (ROWS * C) + 3 * C + c, q)
                tl.store(bias_back + rg * (ROWS * C) + 4 * C + c, s)
            if H_SUMS:
                finish_backward(partial + (tl.num_programs(1) + rg) * (tiles * 2 * C), tiles, pixels, h_coef_here,
                                h_gamma + r * P, h_back + rg * (ROWS * C), c, C, TB)
            if F_NORM:
                finish_backward(partial + (2 * tl.num_programs(1) + rg) * (tiles * 2 * C), tiles, pixels, f_coef,
                                f_gamma + r * P, f_back + rg * (ROWS * C), c, C, TB)


@triton.jit
def pool_kernel(x, x_coef, pooled, images, pixels, C: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr,
                RELU: tl.constexpr):
    """The mean over an image's pixels: pooled (r * G + g, images, C)."""
    rg = tl.program_id(1)
    c = tl.arange(0, C)
    m = tl.arange(0, BM)
    ok = (m < pixels)[:, None] & (c >= 0)[None, :]
    o = (rg * images + tl.program_id(0)) * (pixels * C) + m[:, None] * C + c[None, :]
    v = through(tl.load(x + o, mask=ok, other=0.0).to(tl.float32), x_coef + rg * (ROWS * C), c, C, NORM, RELU)
    tl.store(pooled + (rg * images + tl.program_id(0)) * C + c, tl.sum(tl.where(ok, v, 0.0), 0) / pixels)


@triton.jit
def logits_kernel(pooled, weight, bias, labels, logits, loss, dlogits, dpooled, P, batch, classes, smoothing,
                  C: tl.constexpr, CLASSES: tl.constexpr, BM: tl.constexpr, K: tl.constexpr):
    """The classifier on a replica's images, their cross-entropy / batch and its gradients; CLASSES is padded."""
    r = tl.program_id(1)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = m < batch
    j = tl.arange(0, CLASSES)
    k = tl.arange(0, K)
    real = (j < classes)[None, :]
    weight += r * P
    acc = tl.zeros((BM, CLASSES), tl.float32)
    for start in range(0, C, K):
        o = (r * batch + m)[:, None] * C + start + k[None, :]
        a = tl.load(pooled + o, mask=inside[:, None] & (k >= 0)[None, :], other=0.0)
        b = tl.load(weight + (start + k)[:, None] * CLASSES + j[None, :])
        acc = tl.dot(a, b, acc, input_precision='ieee')
    acc += tl.load(bias + r * P + j)[None, :]
    ok = inside[:, None] & real
    tl.store(logits + (r * batch + m)[:, None] * CLASSES + j[None, :], acc, mask=ok)
    acc = tl.where(real, acc, float('-inf'))
    top = tl.max(acc, 1)[:, None]
    e = tl.exp(acc - top)
    total = tl.sum(e, 1)[:, None]
    label = tl.load(labels + r * batch + m, mask=inside, other=0)
    target = tl.where(j[None, :] == label[:, None], 1.0 - smoothing, 0.0) + smoothing / classes
    target = tl.where(real, target, 0.0)
    nll = tl.sum(tl.where(real, target * (tl.log(total) + top - acc), 0.0), 1)
    tl.store(loss + r * batch + m, nll / batch, mask=inside)
    g = tl.where(ok, (e / total - target) / batch, 0.0)
    tl.store(dlogits + (r * batch + m)[:, None] * CLASSES + j[None, :], g, mask=inside[:, None] & (j >= 0)[None, :])
    for start in range(0, C, K):
        b = tl.load(weight + (start + k)[None, :] * CLASSES + j[:, None])
        d = tl.dot(g, b, input_precision='ieee')
        o = (r * batch + m)[:, None] * C + start + k[None, :]
        tl.store(dpooled + o, d, mask=inside[:, None] & (k >= 0)[None, :])


@triton.jit
def classifier_kernel(pooled, dlogits, loss, dweight, dbias, loss_sum, P, batch, C: tl.constexpr,
                      CLASSES: tl.constexpr, BM: tl.constexpr, K: tl.constexpr):
    """The gradients of the classifier's weight, K rows of it a program, and of its bias; loss_sum grows."""
    r = tl.program_id(1)
    first = tl.program_id(0) * K
    k = tl.arange(0, K)
    j = tl.arange(0, CLASSES)
    acc = tl.zeros((K, CLASSES), tl.float32)
    total = tl.zeros((CLASSES,), tl.float32)
    losses = tl.zeros((BM,), tl.float32)
    for start in range(0, batch, BM):
        m = start + tl.arange(0, BM)
        inside = m < batch
        o = (r * batch + m)[:, None] * CLASSES + j[None, :]
        g = tl.load(dlogits + o, mask=inside[:, None] & (j >= 0)[None, :], other=0.0)
        o = (r * batch + m)[None, :] * C + first + k[:, None]
        a = tl.load(pooled + o, mask=inside[None, :] & (k >= 0)[:, None], other=0.0)
        acc = tl.dot(a, g, acc, input_precision='ieee')
        total += tl.sum(g, 0)
        losses += tl.load(loss + r * batch + m, mask=inside, other=0.0)
    tl.store(dweight + r * P + (first + k)[:, None] * CLASSES + j[None, :], acc)
    if tl.program_id(0) == 0:
        tl.store(dbias + r * P + j, total)
        tl.store(loss_sum + r, tl.load(loss_sum + r) + tl.sum(losses, 0))


@triton.jit
def head_backward_kernel(dpooled, x, x_coef, back, gamma, dx, partial, counter, P, images, pixels, G: tl.constexpr,
                         C: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr, RELU: tl.constexpr, TB: tl.constexpr):
    """The pooling's backward, an image a program: the gradient before the ReLU, and the sums for the norm's."""
    rg = tl.program_id(1)
    c = tl.arange(0, C)
    m = tl.arange(0, BM)
    image = tl.program_id(0)
    ok = (m < pixels)[:, None] & (c >= 0)[None, :]
    o = (rg * images + image) * (pixels * C) + m[:, None] * C + c[None, :]
    x_coef += rg * (ROWS * C)
    v = tl.load(x + o, mask=ok, other=0.0).to(tl.float32)
    g = tl.broadcast_to(tl.load(dpooled + (rg * images + image) * C + c)[None, :] / pixels, (BM, C))
    if RELU:
        g = tl.where(through(v, x_coef, c, C, NORM, False) > 0.0, g, 0.0)
    stored = g.to(dx.dtype.element_ty)
    tl.store(dx + o, stored, mask=ok)
    if NORM:
        store_sums(partial, 0, image, images, stored.to(tl.float32), v - tl.load(x_coef + c)[None, :], ok, c, rg, C)
        if is_last(counter + rg, images):
            finish_backward(partial + rg * (images * 2 * C), images, images * pixels, x_coef, gamma + rg // G * P,
                            back + rg * (ROWS * C), c, C, TB)


@triton.jit
def norms_kernel(table, coefs, backs, running, grads, P, V, images, momentum, G: tl.constexpr, C: tl.constexpr):
    """For each norm (or gate's bias) of a replica: its gradients over all groups, and its running statistics.

    table, a row each: where its statistics begin, its weight (-1: it has none) and its bias in the parameters, its
    running mean in running (R, 2, V) (-1), its channels and the pixels of an image.
    """
    table += tl.program_id(0) * 6
    r = tl.program_id(1)
    start = tl.load(table)
    weight = tl.load(table + 1)
    bias = tl.load(table + 2)
    at = tl.load(table + 3)
    channels = tl.load(table + 4)
    count = (tl.load(table + 5) * images).to(tl.float32)
    c = tl.arange(0, C)
    ok = c < channels
    of_weight = tl.zeros((C,), tl.float32)
    of_bias = tl.zeros((C,), tl.float32)
    mean = tl.load(running + (2 * r) * V + at + c, mask=ok & (at >= 0), other=0.0)
    var = tl.load(running + (2 * r + 1) * V + at + c, mask=ok & (at >= 0), other=0.0)
    for g in range(G):
        o = start + (r * G + g) * ROWS * channels + c
        of_weight += tl.load(backs + o + 3 * channels, mask=ok, other=0.0)
        of_bias += tl.load(backs + o + 4 * channels, mask=ok, other=0.0)
        m = tl.load(coefs + o, mask=ok, other=0.0)
        v = tl.load(coefs + o + channels, mask=ok, other=0.0) * (count / (count - 1.0))
        mean += momentum * (m - mean)
        var += momentum * (v - var)
    tl.store(running + (2 * r) * V + at + c, mean, mask=ok & (at >= 0))
    tl.store(running + (2 * r + 1) * V + at + c, var, mask=ok & (at >= 0))
    tl.store(grads + r * P + weight + c, of_weight, mask=ok & (weight >= 0))
    tl.store(grads + r * P + bias + c, of_bias, mask=ok)


@triton.jit
def fixed_statistics_kernel(table, values, running, coefs, P, V, eps, G: tl.constexpr, C: tl.constexpr):
    """For each norm what its running statistics make of a map, in the place of a batch's; table as `norms_kernel`."""
    table += tl.program_id(0) * 6
    rg = tl.program_id(1)
    r = rg // G
    start = tl.load(table)
    weight = tl.load(table + 1)
    at = tl.load(table + 3)
    channels = tl.load(table + 4)
    c = tl.arange(0, C)
    ok = (c < channels) & (at >= 0)
    mean = tl.load(running + (2 * r) * V + at + c, mask=ok, other=0.0)
    var = tl.load(running + (2 * r + 1) * V + at + c, mask=ok, other=1.0)
    scale = tl.load(values + r * P + weight + c, mask=ok, other=0.0) / tl.sqrt(var + eps)
    shift = tl.load(values + r * P + tl.load(table + 2) + c, mask=ok, other=0.0) - mean * scale
    o = coefs + start + rg * ROWS * channels + c
    tl.store(o + 3 * channels, scale, mask=ok)
    tl.store(o + 4 * channels, shift, mask=ok)


@triton.jit
def sgd_kernel(values, grads, momenta, rates, P, used, decayed, momentum, decay, NESTEROV: tl.constexpr,
               BLOCK: tl.constexpr):
    """A step of torch.optim.SGD; the first `decayed` parameters are. rates: (R,)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < used
    o = tl.program_id(1) * P + i
    v = tl.load(values + o, mask=ok, other=0.0)
    g = tl.load(grads + o, mask=ok, other=0.0) + tl.where(i < decayed, decay, 0.0) * v
    b = momentum * tl.load(momenta + o, mask=ok, other=0.0) + g
    tl.store(momenta + o, b, mask=ok)
    if NESTEROV:
        b = g + momentum * b
    tl.store(values + o, v - tl.load(rates + tl.program_id(1)) * b, mask=ok)


@triton.jit
def average_kernel(values, averages, share, size, BLOCK: tl.constexpr):
    """Move averages by a share of their way to the values."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    average = tl.load(averages + i, mask=i < size, other=0.0)
    tl.store(averages + i, average + share * (tl.load(values + i, mask=i < size, other=0.0) - average), mask=i < size)


@triton.jit
def expand_kernel(values, index, out, P, WE, BLOCK: tl.constexpr):
    """What the convolutions multiply by: out[i] is the parameter index[i], 0 where that is negative."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < WE
    j = tl.load(index + i, mask=ok, other=-1)
    v = tl.load(values + tl.program_id(1) * P + j, mask=j >= 0, other=0.0)
    tl.store(out + tl.program_id(1) * WE + i, v.to(out.dtype.element_ty), mask=ok)


@triton.jit
def augment_kernel(images, labels, order, top, left, flip, hole_top, hole_left, places, mean, std, out, out_labels,
                   epoch, batch, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, RB: tl.constexpr,
                   WB: tl.constexpr, HOLE: tl.constexpr, MEAN_IMAGE: tl.constexpr, AUGMENT: tl.constexpr):
    """RB rows of an image a program: from bytes (N, H, W, 3) to out (R, batch, H, W, C), zeros behind the colours.

    The plan (R, epoch) says at places[r] + i which image, crop, flip and hole replica r takes as its i-th.
    """
    i = tl.program_id(0)
    r = tl.program_id(1)
    at = r * epoch + tl.load(places + r) + i
    index = tl.load(order + at).to(tl.int64)
    m = tl.arange(0, RB * WB)
    c = tl.arange(0, C)
    h = tl.program_id(2) * RB + m // WB
    w = m % WB
    written = ((h < H) & (w < W))[:, None] & (c >= 0)[None, :]
    row = h
    column = w
    if AUGMENT:
        row = h + tl.load(top + at)
        column = tl.where(tl.load(flip + at) != 0, W - 1 - w, w) + tl.load(left + at)
    ok = written & ((row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None] & (c < 3)[None, :]
    if AUGMENT and HOLE:
        down = h - tl.load(hole_top + at)
        right = w - tl.load(hole_left + at)
        ok &= ((down < 0) | (down >= HOLE) | (right < 0) | (right >= HOLE))[:, None]
    o = ((row * W + column) * 3)[:, None] + c[None, :]
    v = tl.load(images + index * (H * W * 3) + o, mask=ok, other=0).to(tl.float32) / 255
    if MEAN_IMAGE:
        v -= tl.load(mean + o, mask=ok, other=0.0)
    else:
        v -= tl.load(mean + c, mask=c < 3, other=0.0)[None, :]
    v = tl.where(ok, v / tl.load(std + c, mask=c < 3, other=1.0)[None, :], 0.0)
    o = (((r * batch + i) * H + h) * W + w)[:, None] * C + c[None, :]
    tl.store(out + o, v.to(out.dtype.element_ty), mask=written)
    if tl.program_id(2) == 0:
        tl.store(out_labels + r * batch + i, tl.load(labels + index).to(tl.int32))
