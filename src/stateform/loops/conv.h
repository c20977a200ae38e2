// A short causal convolution of each channel, and what starts a stable exponential gate. Both lie in channels side by side.
//
//     z_t = bias + sum_i weight_i x_{t-W+1+i},   y_t = z_t, or z_t / (1 + e^{-z_t})          (steps before the first: window)
//
// Backwards, with gz_t the gradient of z_t:
//
//     dx_t = sum_i weight_i gz_{t+W-1-i},   dweight_i = sum_t gz_t x_{t-W+1+i},   dbias = sum_t gz_t

enum { SPAN = 32, MOST_TAPS = 16 };

INLINE const REAL *conv_row(const conv_job *j, int64_t b, int64_t t) {
    return t < 0 ? (REAL *)j->window.at + b * j->window.b + (t + j->taps - 1) * j->window.t
                 : (REAL *)j->x.at + b * j->x.b + t * j->x.t;
}

INLINE vec conv_sum(const conv_job *j, const REAL *const *rows, const REAL *weight, int64_t at, int64_t here, int64_t taps) {
    vec z = j->bias.at ? load_some((REAL *)j->bias.at + at, here) : all(0);
    for (int64_t i = 0; i < taps; i++) z += load_some(rows[i] + at, here) * load_some(weight + i * j->L + at, here);
    return z;
}

INLINE vec logistic(vec z) { return all(1) / (all(1) + vexp(-z)); }

INLINE void conv_rows(const conv_job *j, int64_t item, int64_t taps, int activate) {
    const int64_t tiles = (j->T + SPAN - 1) / SPAN, b = item / tiles, start = item % tiles * SPAN;
    const int64_t stop = start + SPAN < j->T ? start + SPAN : j->T, whole = j->L / LANES * LANES;
    for (int64_t t = start; t < stop; t++) {
        const REAL *rows[MOST_TAPS];
        for (int64_t i = 0; i < taps; i++) rows[i] = conv_row(j, b, t - taps + 1 + i);
        REAL *y = (REAL *)j->y.at + b * j->y.b + t * j->y.t;
        for (int64_t at = 0; at < whole; at += LANES) {
            vec z = conv_sum(j, rows, j->weight.at, at, LANES, taps);
            store(y + at, activate ? z * logistic(z) : z);
        }
        if (whole < j->L) {
            vec z = conv_sum(j, rows, j->weight.at, whole, j->L - whole, taps);
            store_some(y + whole, activate ? z * logistic(z) : z, j->L - whole);
        }
    }
}

static void conv_forward_item(const void *job, int64_t item, void *scratch) {
    const conv_job *j = job;
    (void)scratch;
    if (j->taps == 4)
        j->activate ? conv_rows(j, item, 4, 1) : conv_rows(j, item, 4, 0);
    else
        conv_rows(j, item, j->taps, j->activate);
}

// A strip of channels of one row of the batch, from the last step to the first. At hand are gz of the last W steps, in a
// ring, and the sums over time, so that memory is read row by row.
INLINE void conv_strip(const conv_job *j, int64_t item, REAL *scratch, int64_t taps, int activate) {
    const int64_t strips = (j->L + j->chunk - 1) / j->chunk, b = item / strips, wide = j->chunk + LANES;
    const int64_t first = item % strips * j->chunk, last = first + j->chunk < j->L ? first + j->chunk : j->L;
    const REAL *weight = j->weight.at;
    REAL *gz = scratch, *gw = gz + taps * wide, *gb = gw + taps * wide;
    memset(scratch, 0, (2 * taps + 1) * wide * sizeof(REAL));
    for (int64_t t = j->T - 1; t > -taps; t--) {
        const REAL *rows[MOST_TAPS], *gy = (REAL *)j->gy.at + b * j->gy.b + t * j->gy.t;
        REAL *to = t < 0 ? (REAL *)j->dwindow.at + b * j->dwindow.b + (t + taps - 1) * j->dwindow.t
                         : (REAL *)j->dx.at + b * j->dx.b + t * j->dx.t;
        REAL *ring[MOST_TAPS];  // ring[i] is gz of step t + i
        for (int64_t i = 0; i < taps; i++) {
            ring[i] = gz + (t + i + taps) % taps * wide;
            rows[i] = t < 0 ? 0 : conv_row(j, b, t - taps + 1 + i);
        }
        for (int64_t at = first; at < last; at += LANES) {
            const int64_t here = last - at, o = at - first;
            vec g = all(0);
            if (t >= 0) {
                g = load_some(gy + at, here);
                if (activate) {
                    vec z = conv_sum(j, rows, weight, at, here, taps), s = logistic(z);
                    g *= s * (all(1) + z * (all(1) - s));
                }
                store(gb + o, load(gb + o) + g);
                for (int64_t i = 0; i < taps; i++)
                    store(gw + i * wide + o, load(gw + i * wide + o) + g * load_some(rows[i] + at, here));
            }
            store(ring[0] + o, g);
            vec dx = all(0);
            for (int64_t i = 0; i < taps; i++)
                dx += load(ring[i] + o) * load_some(weight + (taps - 1 - i) * j->L + at, here);
            store_some(to + at, dx, here);
        }
    }
    for (int64_t i = 0; i < taps; i++)
        memcpy((REAL *)j->dweight.at + b * j->dweight.b + i * j->dweight.t + first, gw + i * wide, (last - first) * sizeof(REAL));
    if (j->dbias.at) memcpy((REAL *)j->dbias.at + b * j->dbias.b + first, gb, (last - first) * sizeof(REAL));
}

static void conv_backward_item(const void *job, int64_t item, void *scratch) {
    const conv_job *j = job;
    if (j->taps == 4)
        j->activate ? conv_strip(j, item, scratch, 4, 1) : conv_strip(j, item, scratch, 4, 0);
    else
        conv_strip(j, item, scratch, j->taps, j->activate);
}

int conv_forward(const conv_job *j) {
    const int64_t tiles = (j->T + SPAN - 1) / SPAN;
    return share_out(conv_forward_item, j, j->B * tiles, 64, j->threads);
}

int conv_backward(const conv_job *j) {
    const int64_t room = (2 * j->taps + 1) * (j->chunk + LANES) * sizeof(REAL);
    return share_out(conv_backward_item, j, j->B * ((j->L + j->chunk - 1) / j->chunk), room, j->threads);
}

// m_t = max(m_{t-1} + log_t, gate_t), m_0 the window: the largest exponent so far.
static void peak_item(const void *job, int64_t item, void *scratch) {
    const conv_job *j = job;
    (void)scratch;
    const int64_t strips = (j->L + j->chunk - 1) / j->chunk, b = item / strips;
    const int64_t first = item % strips * j->chunk, last = first + j->chunk < j->L ? first + j->chunk : j->L;
    REAL *m = scratch;
    for (int64_t at = first; at < last; at += LANES)
        store(m + at - first, load_some((REAL *)j->window.at + b * j->window.b + at, last - at));
    for (int64_t t = 0; t < j->T; t++) {
        const REAL *log = (REAL *)j->weight.at + b * j->weight.b + t * j->weight.t, *gate = conv_row(j, b, t);
        REAL *y = (REAL *)j->y.at + b * j->y.b + t * j->y.t;
        for (int64_t at = first; at < last; at += LANES) {
            vec peak = most(load(m + at - first) + load_some(log + at, last - at), load_some(gate + at, last - at));
            store(m + at - first, peak);
            store_some(y + at, peak, last - at);
        }
    }
}

int peaks(const conv_job *j) {
    return share_out(peak_item, j, j->B * ((j->L + j->chunk - 1) / j->chunk), (j->chunk + LANES) * sizeof(REAL), j->threads);
}
