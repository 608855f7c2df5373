/* The likelihood of counts for samsvae.ops.cpu_negative_binomial: log NB(x; m, theta) summed over genes, with
 * m = l softmax(product + bias) + floor, and its gradients. At the end, draws for samsvae.ops.negative_binomial_draws.
 *
 * Arrays are contiguous: product (K, n, G), float or bfloat16; bias, theta (G); library (n); x (n, G), whole numbers;
 * value, lse, dot, grad (K, n). Each row or gene is summed in one fixed order, so that results do not depend on the
 * number of threads. The loops over genes are written for the compiler to vectorise.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TABLE 64 /* largest count in the table of gamma terms */
#define INLINE static inline __attribute__((always_inline))

typedef int64_t number;

INLINE float from_bits(int32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE int32_t to_bits(float value) { int32_t bits; memcpy(&bits, &value, 4); return bits; }

INLINE float load(const void *at, number i, int half)
{
    return half ? from_bits((int32_t)((uint32_t)((const uint16_t *)at)[i] << 16)) : ((const float *)at)[i];
}

INLINE void store(void *at, number i, int half, float value)
{
    uint32_t bits = (uint32_t)to_bits(value);
    if (half) /* round to nearest, ties to even */
        ((uint16_t *)at)[i] = (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    else
        ((float *)at)[i] = value;
}

/* exp(a) for a <= 0 with relative error 1e-7; 0 below -87, NaN for NaN. */
INLINE float exponential(float a)
{
    float c = a < -87.0f ? -87.0f : a;
    float rounded = c * 1.44269504f + 12582912.0f; /* the whole number is in the last bits */
    float scale = from_bits((to_bits(rounded) - 0x4B400000 + 127) << 23);
    rounded -= 12582912.0f;
    float r = c - rounded * 0.693359375f + rounded * 2.12194440e-4f;
    float q = 1.9875691500e-4f;
    q = 1.3981999507e-3f + r * q;
    q = 8.3334519073e-3f + r * q;
    q = 4.1665795894e-2f + r * q;
    q = 1.6666665459e-1f + r * q;
    q = 5.0000001201e-1f + r * q;
    return a < -87.0f ? 0.0f : (1.0f + r + r * r * q) * scale;
}

/* The power of two that scales w > 0 into [0.75, 1.5), as the bits to subtract from the bits of a float. */
INLINE int32_t exponent(float w) { return (to_bits(w) - 0x3F400000) & (int32_t)0xFF800000; }

/* log((1 + f) 2^k) for f in [-0.25, 0.5) with relative error 1e-7, also near log 1 = 0. */
INLINE float from_reduced(float f, int32_t k)
{
    float q = -0.04507450386881828f;
    q = 0.10463005304336548f + f * q;
    q = -0.13161203265190125f + f * q;
    q = 0.14478401839733124f + f * q;
    q = -0.1664731204509735f + f * q;
    q = 0.19990861415863037f + f * q;
    q = -0.2500009536743164f + f * q;
    q = 0.3333345055580139f + f * q;
    return (float)k * (0.6931471805599453f / 8388608) + (f + f * f * (f * q - 0.5f));
}

/* log(w) of a normal float w > 0. */
INLINE float logarithm(float w)
{
    int32_t k = exponent(w);
    return from_reduced(w * from_bits(0x3F800000 - k) - 1.0f, k);
}

/* log(1 + u) for u >= 0, without losing the digits of u that 1 + u rounds away. */
INLINE float log1p_(float u)
{
    int32_t k = exponent(1.0f + u);
    float scale = from_bits(0x3F800000 - k);
    return from_reduced(u * scale + (scale - 1.0f), k);
}

/* What a count x > TABLE adds to the gamma terms of TABLE, by Stirling's series, and the derivative by theta. */
INLINE float above(float x, float theta, float inverse, float scale)
{
    float t = x - TABLE, a = theta + TABLE, y = theta + x;
    float series = (1.0f / y - 1.0f / a - 1.0f / (x + 1.0f) + 1.0f / (TABLE + 1)) / 12;
    return (a - 0.5f) * log1p_(t / a) - (TABLE + 0.5f) * log1p_(t / (TABLE + 1)) + t * logarithm(y * inverse / (x * scale + scale))
           + series;
}
INLINE float slope_above(float x, float theta, float inverse)
{
    float t = x - TABLE, a = 1.0f / (theta + TABLE), y = 1.0f / (theta + x);
    return log1p_(t * a) - (y - a) * (0.5f + (y + a) / 12) - t * inverse;
}

/* Whether all counts are whole numbers from 0 to 2^22. */
int samsvae_whole(const float *x, number size)
{
    int found = 1;
#pragma omp simd reduction(& : found)
    for (number i = 0; i < size; i++)
        found &= (x[i] >= 0.0f) & (x[i] <= 4194304.0f) & (x[i] + 8388608.0f - 8388608.0f == x[i]);
    return found;
}

/* The value (K, n) of the cells from start to stop. lse: log sum exp of the logits; dot: sum_g p_g dvalue/dm_g. */
INLINE int values(int half, const void *product, const float *bias, const float *library, const float *theta,
                  const float *x, float floor_of_mean, number K, number n, number G, number start, number stop,
                  float *value, float *lse, float *dot)
{
    float *p = malloc(sizeof(float) * G * (TABLE + 4)), *inverse = p + G, *scale = inverse + G, *table = scale + G;
    if (!p)
        return 1;
    for (number g = 0; g < G; g++) {
        inverse[g] = 1.0f / theta[g];
        scale[g] = inverse[g] > 1.0f ? inverse[g] : 1.0f; /* x log theta is part of x log m where theta < 1 */
        table[g] = 0.0f;
    }
    for (int j = 0; j < TABLE; j++) /* lgamma(x + theta) - lgamma(theta) - x log(theta scale) - log x!, x = j + 1 */
        for (number g = 0; g < G; g++)
            table[(j + 1) * G + g] = table[j * G + g] + log1p_(j * inverse[g]) - logarithm((j + 1) * scale[g]);

    for (number i = start; i < stop; i++) {
        const float *c = x + i * G;
        float gammas = 0.0f, most = 0.0f;
#pragma omp simd reduction(+ : gammas) reduction(max : most)
        for (number g = 0; g < G; g++) {
            int32_t j = (int32_t)(c[g] > TABLE ? TABLE : c[g]);
            gammas += table[j * G + g];
            most = c[g] > most ? c[g] : most;
        }
        for (number g = 0; most > TABLE && g < G; g++)
            if (c[g] > TABLE)
                gammas += above(c[g], theta[g], inverse[g], scale[g]);
        for (number k = 0; k < K; k++) {
            number row = k * n + i;
            float top = -INFINITY, total = 0.0f, sum = 0.0f, inner = 0.0f, l = library[i];
#pragma omp simd reduction(max : top)
            for (number g = 0; g < G; g++) {
                p[g] = load(product, row * G + g, half) + bias[g];
                top = p[g] > top ? p[g] : top;
            }
#pragma omp simd reduction(+ : total)
            for (number g = 0; g < G; g++) {
                p[g] = exponential(p[g] - top);
                total += p[g];
            }
            float share = 1.0f / total;
#pragma omp simd reduction(+ : sum, inner)
            for (number g = 0; g < G; g++) {
                float q = p[g] * share, m = l * q + floor_of_mean, u = m * inverse[g];
                sum += c[g] * logarithm(m * scale[g]) - (c[g] + theta[g]) * log1p_(u);
                inner += q * (c[g] - m) / (m * (1.0f + u));
            }
            value[row] = sum + gammas;
            lse[row] = top + logf(total);
            dot[row] = inner;
        }
    }
    free(p);
    return 0;
}

int samsvae_values(int half, const void *product, const float *bias, const float *library, const float *theta,
                   const float *x, float floor_of_mean, number K, number n, number G, number start, number stop,
                   float *value, float *lse, float *dot)
{
    return half ? values(1, product, bias, library, theta, x, floor_of_mean, K, n, G, start, stop, value, lse, dot)
                : values(0, product, bias, library, theta, x, floor_of_mean, K, n, G, start, stop, value, lse, dot);
}

/* The gradients of sum(grad * value) for the genes from start to stop. */
INLINE int gradients(int half, const void *product, const float *bias, const float *library, const float *theta,
                     const float *x, float floor_of_mean, number K, number n, number G, number start, number stop,
                     const float *grad, const float *lse, const float *dot, void *d_product, float *d_bias,
                     float *d_theta)
{
    number size = stop - start;
    double *totals = calloc(2 * size, sizeof(double));
    float *sums = malloc(sizeof(float) * size * (TABLE + 4));
    if (!totals || !sums) {
        free(totals), free(sums);
        return 1;
    }
    float *inverse = sums + 2 * size, *table = inverse + size;
    bias += start, theta += start, x += start, d_bias += start, d_theta += start;
    for (number g = 0; g < size; g++) {
        inverse[g] = 1.0f / theta[g];
        table[g] = 0.0f;
    }
    for (int j = 0; j < TABLE; j++) /* digamma(j + 1 + theta) - digamma(theta) - (j + 1) / theta */
        for (number g = 0; g < size; g++) {
            float v = j * inverse[g];
            table[(j + 1) * size + g] = table[j * size + g] - inverse[g] * (v / (1.0f + v));
        }

    for (number i = 0; i < n; i++) { /* sums over particles in float, over cells in double */
        const float *c = x + i * G;
        float weights = 0.0f, most = 0.0f;
        for (number g = 0; g < 2 * size; g++)
            sums[g] = 0.0f;
        for (number k = 0; k < K; k++) {
            number row = k * n + i, first = row * G + start;
            float w = grad[row], l = library[i], z = lse[row], inner = dot[row];
            weights += w;
#pragma omp simd
            for (number g = 0; g < size; g++) {
                float q = exponential(load(product, first + g, half) + bias[g] - z);
                float m = l * q + floor_of_mean, u = m * inverse[g], h = 1.0f / (m * (1.0f + u));
                float d = w * l * q * ((c[g] - m) * h - inner);
                store(d_product, first + g, half, d);
                sums[g] += d;
                sums[size + g] += w * ((1.0f + c[g] * inverse[g]) * (u * m * h) - log1p_(u));
            }
        }
#pragma omp simd reduction(max : most)
        for (number g = 0; g < size; g++) {
            int32_t j = (int32_t)(c[g] > TABLE ? TABLE : c[g]);
            sums[size + g] += weights * table[j * size + g];
            most = c[g] > most ? c[g] : most;
        }
        for (number g = 0; most > TABLE && g < size; g++)
            if (c[g] > TABLE)
                sums[size + g] += weights * slope_above(c[g], theta[g], inverse[g]);
        for (number g = 0; g < 2 * size; g++)
            totals[g] += sums[g];
    }
    for (number g = 0; g < size; g++) {
        d_bias[g] = (float)totals[g];
        d_theta[g] = (float)totals[size + g];
    }
    free(totals), free(sums);
    return 0;
}

int samsvae_gradients(int half, const void *product, const float *bias, const float *library, const float *theta,
                      const float *x, float floor_of_mean, number K, number n, number G, number start, number stop,
                      const float *grad, const float *lse, const float *dot, void *d_product, float *d_bias,
                      float *d_theta)
{
    return half ? gradients(1, product, bias, library, theta, x, floor_of_mean, K, n, G, start, stop, grad, lse, dot,
                            d_product, d_bias, d_theta)
                : gradients(0, product, bias, library, theta, x, floor_of_mean, K, n, G, start, stop, grad, lse, dot,
                            d_product, d_bias, d_theta);
}

#define LANES 64         /* genes at a time: several vectors, whose steps overlap */
#define NEGLIGIBLE 1e-10f /* a smaller probability does not change a distribution function in float */
#define TINY 1e-35f       /* smaller numbers may be subnormal, which some CPUs multiply slowly */

/* Counts by inversion for the rows from start to stop: x (rows, G) holds uniform numbers in [0, 1) and gets the smallest
 * counts whose distribution function reaches them. mean (rows, G); theta log(1 + mean / theta) may not exceed 80. */
void samsvae_draw(const float *mean, const float *theta, float *x, number G, number start, number stop)
{
    for (number row = start; row < stop; row++)
        for (number first = 0; first < G; first += LANES) {
            float u[LANES], p[LANES], a[LANES], b[LANES], m[LANES], count[LANES];
            number size = G - first < LANES ? G - first : LANES, at = row * G + first;
            for (number i = 0; i < LANES; i++) { /* the rest of a last block is done at once */
                m[i] = i < size ? mean[at + i] : 0.0f;
                b[i] = i < size ? theta[first + i] : 1.0f;
                u[i] = i < size ? x[at + i] : 0.0f;
            }
#pragma omp simd
            for (number i = 0; i < LANES; i++) {
                p[i] = exponential(-b[i] * log1p_(m[i] / b[i]));
                a[i] = m[i] / (m[i] + b[i]);
                b[i] = a[i] * (b[i] - 1.0f);
                u[i] -= p[i];
                count[i] = u[i] > 0.0f ? 1.0f : 0.0f;
            }
            float left = 1.0f;
            for (float k = 1.0f; left > 0.0f; k += 1.0f) {
                float inverse = 1.0f / k;
                left = 0.0f;
#pragma omp simd reduction(max : left)
                for (number i = 0; i < LANES; i++) {
                    float q = p[i] * (a[i] + b[i] * inverse), rest = u[i] - q;
                    float more = rest > 0.0f ? 1.0f : 0.0f, open = k < m[i] ? 1.0f : q >= NEGLIGIBLE ? 1.0f : 0.0f;
                    p[i] = q < TINY ? 0.0f : q;
                    u[i] = rest;
                    count[i] += more;
                    left = more * open > left ? more * open : left;
                }
            }
            for (number i = 0; i < size; i++)
                x[at + i] = count[i];
        }
}
