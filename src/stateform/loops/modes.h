// L channels, each a sum of n complex modes of its own with constant coefficients; the channels lie in the lanes.
//
//     h_t = a h_{t-1} + k v_t,   y_t = Re(q h_t)   summed over the modes        (exclusive: q h_{t-1})
//
// Coefficients and one mode's state stay in registers over a tile. Backwards, with D_t the gradient of (Re h_t, Im h_t):
//
//     D_t += (Re q, -Im q) gy_t,   dv_t = Re(conj(k) D_t),   dk = sum_t D_t v_t,   D_{t-1} = conj(a) D_t,
//     da = sum_t conj(h_{t-1}) D_t,   dq = sum_t (Re h_t, -Im h_t) gy_t

enum { Q_RE, Q_IM, K_RE, K_IM, A_RE, A_IM, COEFFICIENTS };

// Where coefficient c of mode i begins in [.., n, L] at the first lane.
INLINE int64_t mode_at(const modes_job *j, int64_t c, int64_t i, int64_t first) { return (c * j->n + i) * j->L + first; }

INLINE void copy_lanes(REAL *to, const REAL *from, int64_t rows, int64_t stride, int64_t first, int64_t here) {
    for (int64_t i = 0; i < rows; i++) store_some(to + i * stride + first, load_some(from + i * stride + first, here), here);
}

INLINE void modes_item(const modes_job *j, int64_t item, int exclusive) {
    const int64_t strips = (j->L + LANES - 1) / LANES, b = item / strips, first = item % strips * LANES;
    const int64_t here = j->L - first, n = j->n, tiles = (j->T + TILE - 1) / TILE;
    const REAL *coefficients = j->c.at;
    REAL *state = (REAL *)j->end.at + b * 2 * n * j->L;
    copy_lanes(state, (REAL *)j->S.at + b * 2 * n * j->L, 2 * n, j->L, first, here);
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t start = tile * TILE, steps = j->T - start < TILE ? j->T - start : TILE;
        if (j->kept.at)
            copy_lanes((REAL *)j->kept.at + (b * tiles + tile) * 2 * n * j->L, state, 2 * n, j->L, first, here);
        vec v[TILE], y[TILE];
        for (int64_t t = 0; t < steps; t++) {
            v[t] = load_some(row(&j->v, b, start + t) + first, here);
            y[t] = all(0);
        }
        for (int64_t i = 0; i < n; i++) {
            vec x[COEFFICIENTS];
            for (int64_t c = 0; c < COEFFICIENTS; c++) x[c] = load_some(coefficients + mode_at(j, c, i, first), here);
            vec re = load_some(state + mode_at(j, 0, i, first), here), im = load_some(state + mode_at(j, 1, i, first), here);
            for (int64_t t = 0; t < steps; t++) {
                if (exclusive) y[t] += x[Q_RE] * re - x[Q_IM] * im;
                vec next = x[A_RE] * re - x[A_IM] * im + x[K_RE] * v[t];
                im = x[A_RE] * im + x[A_IM] * re + x[K_IM] * v[t];
                re = next;
                if (!exclusive) y[t] += x[Q_RE] * re - x[Q_IM] * im;
            }
            store_some(state + mode_at(j, 0, i, first), re, here);
            store_some(state + mode_at(j, 1, i, first), im, here);
        }
        for (int64_t t = 0; t < steps; t++) store_some(row(&j->y, b, start + t) + first, y[t], here);
    }
}

INLINE void modes_backward(const modes_job *j, int64_t item, int exclusive) {
    const int64_t strips = (j->L + LANES - 1) / LANES, b = item / strips, first = item % strips * LANES;
    const int64_t here = j->L - first, n = j->n, tiles = (j->T + TILE - 1) / TILE;
    const REAL *coefficients = j->c.at;
    REAL *D = (REAL *)j->dS.at + b * 2 * n * j->L, *dc = (REAL *)j->dc.at + b * COEFFICIENTS * n * j->L;
    copy_lanes(D, (REAL *)j->gend.at + b * 2 * n * j->L, 2 * n, j->L, first, here);
    for (int64_t i = 0; i < COEFFICIENTS * n; i++) store_some(dc + i * j->L + first, all(0), here);
    for (int64_t tile = tiles - 1; tile >= 0; tile--) {
        const int64_t start = tile * TILE, steps = j->T - start < TILE ? j->T - start : TILE;
        const REAL *kept = (REAL *)j->kept.at + (b * tiles + tile) * 2 * n * j->L;
        vec v[TILE], gy[TILE], gv[TILE], re[TILE + 1], im[TILE + 1];
        for (int64_t t = 0; t < steps; t++) {
            v[t] = load_some(row(&j->v, b, start + t) + first, here);
            gy[t] = load_some(row(&j->gy, b, start + t) + first, here);
            gv[t] = all(0);
        }
        for (int64_t i = 0; i < n; i++) {
            vec x[COEFFICIENTS], dx[COEFFICIENTS];
            for (int64_t c = 0; c < COEFFICIENTS; c++) {
                x[c] = load_some(coefficients + mode_at(j, c, i, first), here);
                dx[c] = load_some(dc + mode_at(j, c, i, first), here);
            }
            re[0] = load_some(kept + mode_at(j, 0, i, first), here);
            im[0] = load_some(kept + mode_at(j, 1, i, first), here);
            for (int64_t t = 0; t < steps; t++) {
                re[t + 1] = x[A_RE] * re[t] - x[A_IM] * im[t] + x[K_RE] * v[t];
                im[t + 1] = x[A_RE] * im[t] + x[A_IM] * re[t] + x[K_IM] * v[t];
            }
            vec dr = load_some(D + mode_at(j, 0, i, first), here), di = load_some(D + mode_at(j, 1, i, first), here);
            for (int64_t t = steps - 1; t >= 0; t--) {
                const int64_t read = exclusive ? t : t + 1;
                if (!exclusive) dr += x[Q_RE] * gy[t], di -= x[Q_IM] * gy[t];
                dx[Q_RE] += re[read] * gy[t];
                dx[Q_IM] -= im[read] * gy[t];
                dx[K_RE] += dr * v[t];
                dx[K_IM] += di * v[t];
                gv[t] += x[K_RE] * dr + x[K_IM] * di;
                dx[A_RE] += dr * re[t] + di * im[t];
                dx[A_IM] += di * re[t] - dr * im[t];
                vec next = x[A_RE] * dr + x[A_IM] * di;
                di = x[A_RE] * di - x[A_IM] * dr;
                dr = next;
                if (exclusive) dr += x[Q_RE] * gy[t], di -= x[Q_IM] * gy[t];
            }
            store_some(D + mode_at(j, 0, i, first), dr, here);
            store_some(D + mode_at(j, 1, i, first), di, here);
            for (int64_t c = 0; c < COEFFICIENTS; c++) store_some(dc + mode_at(j, c, i, first), dx[c], here);
        }
        for (int64_t t = 0; t < steps; t++) store_some(row(&j->dv, b, start + t) + first, gv[t], here);
    }
}

static void modes_forward_item(const void *job, int64_t item, void *scratch) {
    (void)scratch;
    const modes_job *j = job;
    j->exclusive ? modes_item(j, item, 1) : modes_item(j, item, 0);
}

static void modes_backward_item(const void *job, int64_t item, void *scratch) {
    (void)scratch;
    const modes_job *j = job;
    j->exclusive ? modes_backward(j, item, 1) : modes_backward(j, item, 0);
}

int modes_forward_run(const modes_job *j) {
    return share_out(modes_forward_item, j, j->B * ((j->L + LANES - 1) / LANES), 64, j->threads);
}

int modes_backward_run(const modes_job *j) {
    return share_out(modes_backward_item, j, j->B * ((j->L + LANES - 1) / LANES), 64, j->threads);
}
