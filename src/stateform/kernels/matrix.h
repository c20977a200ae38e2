// Per head, a state S of n keys by p values; columns are independent, and lie in the lanes of a vector.
//
//     z_t = S_{t-1}^T w_t                                       (with feedback)
//     S_t = exp(log_t) S_{t-1} + k_t v_t^T + f_t z_t^T          y_t = q_t^T S_t   (exclusive: q_t^T S_{t-1})
//
// The gradient runs backwards over tiles of TILE steps: the state before each tile was kept, those inside are computed
// again. With D_t the gradient of S_t (from y_t, y_{t+1}, ...):
//
//     dq_t = S_t gy_t     dk_t = D_t v_t     dv_t = D_t^T k_t     da_t = rowsum(D_t * S_{t-1})
//     df_t = D_t z_t      dz_t = D_t^T f_t   dw_t = S_{t-1} dz_t  D_{t-1} = a_t D_t + w_t dz_t^T + q_{t-1} gy_{t-1}^T

// What one tile of one head needs, packed: keys in rows of n (padded to LANES), columns in rows of width NV * LANES.
typedef struct {
    int64_t steps, n;
    REAL *q, *k, *a, *f, *w;     // [TILE][n]; a [TILE] where the decay is scalar
    REAL *v, *y, *z, *gy, *gv;    // [TILE][width]
    REAL *dq, *dk, *da, *df, *dw; // as q, k, a, f, w
    REAL *states;                 // [TILE + 1][n][width]
} tile;

enum { NO_DECAY, SCALAR_DECAY, DIAGONAL_DECAY };

#ifdef __AVX512F__
#define ROWS 8  // rows of a state that stay in registers over a tile
#else
#define ROWS 4
#endif

// Without feedback rows are independent too: a block of ROWS stays in registers over all steps of the tile.
INLINE void forward_rows(const tile *x, REAL *S, int NV, int decay, int exclusive) {
    const int64_t n = x->n, W = NV * LANES;
    for (int64_t i0 = 0; i0 < n; i0 += ROWS) {
        vec s[ROWS][2];
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < NV; c++) s[i][c] = load(S + (i0 + i) * W + c * LANES);
        for (int64_t t = 0; t < x->steps; t++) {
            const REAL *k = x->k + t * n + i0, *q = x->q + t * n + i0;
            vec v[2], y[2], a = all(1);
            for (int c = 0; c < NV; c++) v[c] = load(x->v + t * W + c * LANES), y[c] = load(x->y + t * W + c * LANES);
            if (decay == SCALAR_DECAY) a = all(x->a[t]);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                vec ki = all(k[i]), qi = all(q[i]);
                if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i0 + i]);
                for (int c = 0; c < NV; c++) {
                    if (exclusive) y[c] += qi * s[i][c];
                    s[i][c] = decay == NO_DECAY ? s[i][c] + ki * v[c] : a * s[i][c] + ki * v[c];
                    if (!exclusive) y[c] += qi * s[i][c];
                }
            }
            for (int c = 0; c < NV; c++) store(x->y + t * W + c * LANES, y[c]);
        }
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < NV; c++) store(S + (i0 + i) * W + c * LANES, s[i][c]);
    }
}

// With feedback: one pass over the state a step, which writes S_t, reads y_t and already gathers z_{t+1}.
INLINE void forward_feedback(const tile *x, REAL *S, int NV, int decay, int exclusive) {
    const int64_t n = x->n, W = NV * LANES;
    vec z[4];
    for (int c = 0; c < NV; c++) z[c] = all(0);
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < NV; c++) z[c] += all(x->w[i]) * load(S + i * W + c * LANES);
    for (int64_t t = 0; t < x->steps; t++) {
        const REAL *k = x->k + t * n, *q = x->q + t * n, *f = x->f + t * n, *w = x->w + (t + 1) * n;
        vec v[4], y[4], next[4], a = all(1);
        for (int c = 0; c < NV; c++) v[c] = load(x->v + t * W + c * LANES), y[c] = next[c] = all(0);
        if (decay == SCALAR_DECAY) a = all(x->a[t]);
        for (int64_t i = 0; i < n; i++) {
            vec ki = all(k[i]), qi = all(q[i]), fi = all(f[i]), wi = all(w[i]);
            if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
            for (int c = 0; c < NV; c++) {
                vec s = load(S + i * W + c * LANES);
                if (exclusive) y[c] += qi * s;
                s = decay == NO_DECAY ? s + ki * v[c] : a * s + ki * v[c];
                s += fi * z[c];
                if (!exclusive) y[c] += qi * s;
                next[c] += wi * s;
                store(S + i * W + c * LANES, s);
            }
        }
        for (int c = 0; c < NV; c++) store(x->y + t * W + c * LANES, y[c]), z[c] = next[c];
    }
}

// The states of the tile again, x->states[0] given; and z.
INLINE void recompute(const tile *x, int NV, int decay, int feedback) {
    const int64_t n = x->n, W = NV * LANES;
    for (int64_t t = 0; t < x->steps; t++) {
        const REAL *from = x->states + t * n * W;
        REAL *to = x->states + (t + 1) * n * W;
        vec v[4], z[4], a = all(1);
        for (int c = 0; c < NV; c++) v[c] = load(x->v + t * W + c * LANES), z[c] = all(0);
        if (feedback) {
            for (int64_t i = 0; i < n; i++)
                for (int c = 0; c < NV; c++) z[c] += all(x->w[t * n + i]) * load(from + i * W + c * LANES);
            for (int c = 0; c < NV; c++) store(x->z + t * W + c * LANES, z[c]);
        }
        if (decay == SCALAR_DECAY) a = all(x->a[t]);
        for (int64_t i = 0; i < n; i++) {
            vec ki = all(x->k[t * n + i]), fi = feedback ? all(x->f[t * n + i]) : all(0);
            if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
            for (int c = 0; c < NV; c++) {
                vec s = load(from + i * W + c * LANES);
                s = decay == NO_DECAY ? s + ki * v[c] : a * s + ki * v[c];
                if (feedback) s += fi * z[c];
                store(to + i * W + c * LANES, s);
            }
        }
    }
}

// D [n][width] is the gradient of the state after the tile, and then of the state before it.
INLINE void backward_tile(const tile *x, REAL *D, int NV, int decay, int feedback, int exclusive) {
    const int64_t n = x->n, W = NV * LANES;
    for (int64_t t = x->steps - 1; t >= 0; t--) {
        const REAL *before = x->states + t * n * W, *read = exclusive ? before : before + n * W;
        vec v[4], z[4], gy[4], gv[4], gz[4], total = all(0), a = all(1);
        for (int c = 0; c < NV; c++) {
            v[c] = load(x->v + t * W + c * LANES), gy[c] = load(x->gy + t * W + c * LANES);
            z[c] = feedback ? load(x->z + t * W + c * LANES) : all(0);
            gv[c] = gz[c] = all(0);
        }
        if (decay == SCALAR_DECAY) a = all(x->a[t]);
        for (int64_t i0 = 0; i0 < n; i0 += LANES) {
            vec gq[LANES], gk[LANES], ga[LANES], gf[LANES];
            for (int64_t i = i0; i < i0 + LANES; i++) {
                vec qi = all(x->q[t * n + i]), ki = all(x->k[t * n + i]), sq = all(0), sk = all(0), sa = all(0), sf = all(0);
                vec fi = feedback ? all(x->f[t * n + i]) : all(0);
                if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
                for (int c = 0; c < NV; c++) {
                    vec d = load(D + i * W + c * LANES);
                    if (!exclusive) d += qi * gy[c];
                    sq += load(read + i * W + c * LANES) * gy[c];
                    sk += d * v[c];
                    gv[c] += d * ki;
                    if (decay != NO_DECAY) sa += d * load(before + i * W + c * LANES);
                    if (feedback) sf += d * z[c], gz[c] += d * fi;
                    if (!feedback) {
                        if (decay != NO_DECAY) d = a * d;
                        if (exclusive) d += qi * gy[c];
                    }
                    store(D + i * W + c * LANES, d);
                }
                gq[i - i0] = sq, gk[i - i0] = sk;
                if (decay == DIAGONAL_DECAY) ga[i - i0] = sa;
                if (decay == SCALAR_DECAY) total += sa;
                if (feedback) gf[i - i0] = sf;
            }
            REAL *dq = x->dq + t * n + i0, *dk = x->dk + t * n + i0;
            store(dq, load(dq) + sums(gq));
            store(dk, load(dk) + sums(gk));
            if (decay == DIAGONAL_DECAY) {
                REAL *da = x->da + t * n + i0;
                store(da, load(da) + sums(ga));
            }
            if (feedback) {
                REAL *df = x->df + t * n + i0;
                store(df, load(df) + sums(gf));
            }
        }
        if (decay == SCALAR_DECAY) x->da[t] += sum(total);
        for (int c = 0; c < NV; c++) store(x->gv + t * W + c * LANES, gv[c]);
        if (!feedback) continue;
        for (int64_t i0 = 0; i0 < n; i0 += LANES) {
            vec gw[LANES];
            for (int64_t i = i0; i < i0 + LANES; i++) {
                vec wi = all(x->w[t * n + i]), qi = all(x->q[t * n + i]), sw = all(0);
                if (decay == DIAGONAL_DECAY) a = all(x->a[t * n + i]);
                for (int c = 0; c < NV; c++) {
                    vec d = load(D + i * W + c * LANES);
                    sw += load(before + i * W + c * LANES) * gz[c];
                    d = decay == NO_DECAY ? d + wi * gz[c] : a * d + wi * gz[c];
                    if (exclusive) d += qi * gy[c];
                    store(D + i * W + c * LANES, d);
                }
                gw[i - i0] = sw;
            }
            REAL *dw = x->dw + t * n + i0;
            store(dw, load(dw) + sums(gw));
        }
    }
}

#define EACH_WIDTH(call) \
    do { \
        if (NV == 1) call(1); \
        else if (NV == 2) call(2); \
        else call(4); \
    } while (0)

static void forward_block(const tile *x, REAL *S, int NV, int decay, int feedback, int exclusive) {
#define WITH(nv, d, e) (feedback ? forward_feedback(x, S, nv, d, e) : forward_rows(x, S, nv > 2 ? 2 : nv, d, e))
#define ONE(nv) \
    (exclusive ? decay == DIAGONAL_DECAY ? WITH(nv, DIAGONAL_DECAY, 1) : decay == SCALAR_DECAY ? WITH(nv, SCALAR_DECAY, 1) : WITH(nv, NO_DECAY, 1) \
     : decay == DIAGONAL_DECAY ? WITH(nv, DIAGONAL_DECAY, 0) : decay == SCALAR_DECAY ? WITH(nv, SCALAR_DECAY, 0) : WITH(nv, NO_DECAY, 0))
    EACH_WIDTH(ONE);
#undef ONE
#undef WITH
}

static void backward_block(const tile *x, REAL *D, int NV, int decay, int feedback, int exclusive) {
#define WITH(nv, d, f, e) (recompute(x, nv, d, f), backward_tile(x, D, nv, d, f, e))
#define HOW(nv, d) (feedback ? exclusive ? WITH(nv, d, 1, 1) : WITH(nv, d, 1, 0) : exclusive ? WITH(nv, d, 0, 1) : WITH(nv, d, 0, 0))
#define ONE(nv) (decay == DIAGONAL_DECAY ? HOW(nv, DIAGONAL_DECAY) : decay == SCALAR_DECAY ? HOW(nv, SCALAR_DECAY) : HOW(nv, NO_DECAY))
    EACH_WIDTH(ONE);
#undef ONE
#undef HOW
#undef WITH
}

static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Columns that are computed side by side, in vectors: with feedback, and for the gradient, 4, else 2.
static int width(int64_t columns, int many) {
    return columns <= LANES ? 1 : columns <= 2 * LANES || !many ? 2 : 4;
}

static int64_t piece(const matrix_job *j) {  // columns of a piece, a multiple of the vector
    return padded((j->p + j->pieces - 1) / j->pieces);
}

static int decay_of(const matrix_job *j) {
    return !j->log.at ? NO_DECAY : j->wide ? DIAGONAL_DECAY : SCALAR_DECAY;
}

static void pack_keys(const matrix_job *j, tile *x, int64_t b, int64_t g, int64_t r, int64_t t) {
    const int64_t n = x->n, s = x->steps;
    pack(x->q, n, &j->q, b, t, s, g, r, 0, j->n);
    pack(x->k, n, &j->k, b, t, s, g, r, 0, j->n);
    if (j->log.at) {
        if (j->wide) {
            pack(x->a, n, &j->log, b, t, s, g, r, 0, j->n);
            exps(x->a, s * n);
        } else {
            memset(x->a, 0, TILE * sizeof(REAL));
            for (int64_t i = 0; i < s; i++) x->a[i] = *element(&j->log, b, t + i, g, r);
            exps(x->a, TILE);
        }
    }
    if (j->f.at) {
        pack(x->f, n, &j->f, b, t, s, g, r, 0, j->n);
        pack(x->w, n, &j->w, b, t, s, g, r, 0, j->n);
        memset(x->w + s * n, 0, n * sizeof(REAL));
    }
}

// The scratch memory of an item, in numbers: keys, columns and the states of its columns.
static int64_t matrix_scratch(const matrix_job *j, tile *x, REAL **state, REAL *at, int gradient) {
    const int64_t n = padded(j->n), keys = (TILE + 1) * n, columns = TILE * 4 * LANES;
    REAL *start = at;
    x->n = n;
    REAL **each[] = {&x->q, &x->k, &x->a, &x->f, &x->w, &x->dq, &x->dk, &x->da, &x->df, &x->dw};
    for (int i = 0; i < (gradient ? 10 : 5); i++) *each[i] = at, at += keys + TILE;
    REAL **sides[] = {&x->v, &x->y, &x->z, &x->gy, &x->gv};
    for (int i = 0; i < 5; i++) *sides[i] = at, at += columns;
    *state = at, at += n * (piece(j) + 4 * LANES);
    x->states = at, at += gradient ? (TILE + 1) * n * 4 * LANES : 0;
    return at - start;
}

// A state [n, columns of a block] from or to memory [n][p].
static void take_state(REAL *to, int64_t width, const REAL *from, int64_t n, int64_t p, int64_t first, int64_t last) {
    int64_t here = last - first < width ? last - first : width;
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + i * width, from + i * p + first, here * sizeof(REAL));
        memset(to + i * width + here, 0, (width - here) * sizeof(REAL));
    }
}

static void put_state(REAL *to, const REAL *from, int64_t width, int64_t n, int64_t p, int64_t first, int64_t last) {
    int64_t here = last - first < width ? last - first : width;
    for (int64_t i = 0; i < n; i++) memcpy(to + i * p + first, from + i * width, here * sizeof(REAL));
}

typedef struct { int64_t b, g, r, span, piece, head, first, last; } place;

// An item is a piece of the columns of a head; backwards, of a span of heads that share q or k, one after the other.
static place find(const matrix_job *j, int64_t item, int64_t spans) {
    place o;
    o.piece = item % j->pieces, o.span = item / j->pieces % spans;
    o.g = item / j->pieces / spans % j->G, o.b = item / j->pieces / spans / j->G;
    o.r = o.span * j->R / spans;
    o.head = (o.b * j->G + o.g) * j->R + o.r;
    o.first = o.piece * piece(j);
    o.last = o.first + piece(j) < j->p ? o.first + piece(j) : j->p;
    return o;
}

static void matrix_forward_item(const void *job, int64_t item, void *scratch) {
    const matrix_job *j = job;
    const place o = find(j, item, j->R);
    tile x;
    REAL *S;
    matrix_scratch(j, &x, &S, scratch, 0);
    const int64_t n = x.n, tiles = (j->T + TILE - 1) / TILE;
    const int feedback = j->f.at != 0;
    if (o.first >= o.last) return;
    memset(S, 0, n * (piece(j) + 4 * LANES) * sizeof(REAL));
    REAL *at = S;
    for (int64_t c = o.first; c < o.last; at += n * width(o.last - c, feedback) * LANES, c += width(o.last - c, feedback) * LANES)
        take_state(at, width(o.last - c, feedback) * LANES, element(&j->S, o.b, 0, o.g, o.r), j->n, j->p, c, o.last);
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t t = tile * TILE;
        x.steps = j->T - t < TILE ? j->T - t : TILE;
        pack_keys(j, &x, o.b, o.g, o.r, t);
        at = S;
        for (int64_t c = o.first; c < o.last;) {
            const int NV = width(o.last - c, feedback);
            const int64_t W = NV * LANES;
            if (j->kept.at)
                put_state((REAL *)j->kept.at + (o.head * tiles + tile) * j->n * j->p, at, W, j->n, j->p, c, o.last);
            pack(x.v, W, &j->v, o.b, t, x.steps, o.g, o.r, c, o.last);
            memset(x.y, 0, x.steps * W * sizeof(REAL));
            forward_block(&x, at, NV, decay_of(j), feedback, j->exclusive);
            unpack(x.y, W, &j->y, o.b, t, x.steps, o.g, o.r, c, o.last, 0);
            at += n * W, c += W;
        }
    }
    at = S;
    for (int64_t c = o.first; c < o.last;) {
        const int64_t W = width(o.last - c, feedback) * LANES;
        put_state(element(&j->end, o.b, 0, o.g, o.r), at, W, j->n, j->p, c, o.last);
        at += n * W, c += W;
    }
}

static void backward_head(const matrix_job *j, tile x, REAL *D, place o, int add) {
    const int64_t n = x.n, tiles = (j->T + TILE - 1) / TILE;
    const int feedback = j->f.at != 0, decay = decay_of(j);
    const int64_t wide = decay == DIAGONAL_DECAY ? n : 1;
    tensor dq = j->dq, dk = j->dk, dlog = j->dlog, df = j->df, dw = j->dw;
    tensor *keyed[] = {&dq, &dk, &df, &dw};
    for (int i = 0; i < 4; i++)
        if (keyed[i]->at) keyed[i]->at = (REAL *)keyed[i]->at + o.piece * keyed[i]->piece;
    if (dlog.at) dlog.at = (REAL *)dlog.at + o.piece * dlog.piece;
    const int64_t rq = j->shared_q ? o.span : o.r, rk = j->shared_k ? o.span : o.r;
    memset(D, 0, n * (piece(j) + 4 * LANES) * sizeof(REAL));
    REAL *at = D;
    for (int64_t c = o.first; c < o.last;) {
        const int64_t W = width(o.last - c, 1) * LANES;
        take_state(at, W, element(&j->gend, o.b, 0, o.g, o.r), j->n, j->p, c, o.last);
        at += n * W, c += W;
    }
    for (int64_t tile = tiles - 1; tile >= 0; tile--) {
        const int64_t t = tile * TILE;
        x.steps = j->T - t < TILE ? j->T - t : TILE;
        pack_keys(j, &x, o.b, o.g, o.r, t);
        memset(x.dq, 0, x.steps * n * sizeof(REAL));
        memset(x.dk, 0, x.steps * n * sizeof(REAL));
        memset(x.da, 0, x.steps * wide * sizeof(REAL));
        if (feedback) memset(x.df, 0, x.steps * n * sizeof(REAL)), memset(x.dw, 0, x.steps * n * sizeof(REAL));
        at = D;
        for (int64_t c = o.first; c < o.last;) {
            const int NV = width(o.last - c, 1);
            const int64_t W = NV * LANES;
            pack(x.v, W, &j->v, o.b, t, x.steps, o.g, o.r, c, o.last);
            pack(x.gy, W, &j->gy, o.b, t, x.steps, o.g, o.r, c, o.last);
            memset(x.states, 0, n * W * sizeof(REAL));
            take_state(x.states, W, (REAL *)j->kept.at + (o.head * tiles + tile) * j->n * j->p, j->n, j->p, c, o.last);
            backward_block(&x, at, NV, decay, feedback, j->exclusive);
            unpack(x.gv, W, &j->dv, o.b, t, x.steps, o.g, o.r, c, o.last, 0);
            at += n * W, c += W;
        }
        unpack(x.dq, n, &dq, o.b, t, x.steps, o.g, rq, 0, j->n, add && j->shared_q);
        unpack(x.dk, n, &dk, o.b, t, x.steps, o.g, rk, 0, j->n, add && j->shared_k);
        if (decay != NO_DECAY) {
            for (int64_t i = 0; i < x.steps * wide; i++) x.da[i] *= x.a[i];
            unpack(x.da, wide, &dlog, o.b, t, x.steps, o.g, o.r, 0, decay == DIAGONAL_DECAY ? j->n : 1, 0);
        }
        if (feedback) {
            unpack(x.df, n, &df, o.b, t, x.steps, o.g, o.r, 0, j->n, 0);
            unpack(x.dw, n, &dw, o.b, t, x.steps, o.g, o.r, 0, j->n, 0);
        }
    }
    at = D;
    for (int64_t c = o.first; c < o.last;) {
        const int64_t W = width(o.last - c, 1) * LANES;
        put_state(element(&j->dS, o.b, 0, o.g, o.r), at, W, j->n, j->p, c, o.last);
        at += n * W, c += W;
    }
}

static void matrix_backward_item(const void *job, int64_t item, void *scratch) {
    const matrix_job *j = job;
    place o = find(j, item, j->spans);
    tile x;
    REAL *D;
    matrix_scratch(j, &x, &D, scratch, 1);
    const int64_t first = o.r, last = (o.span + 1) * j->R / j->spans;
    if (o.first >= o.last) o.last = o.first;
    for (; o.r < last; o.r++, o.head++) backward_head(j, x, D, o, o.r > first);
}

int matrix_forward(const matrix_job *j) {
    tile x;
    REAL *S;
    return share_out(matrix_forward_item, j, j->B * j->G * j->R * j->pieces,
                     matrix_scratch(j, &x, &S, 0, 0) * sizeof(REAL), j->threads);
}

int matrix_backward(const matrix_job *j) {
    tile x;
    REAL *S;
    return share_out(matrix_backward_item, j, j->B * j->G * j->spans * j->pieces,
                     matrix_scratch(j, &x, &S, 0, 1) * sizeof(REAL), j->threads);
}
