/* Element types and the bf16 conversions every backend shares.
 *
 * Storage only: arithmetic is done in f32 or wider. */
#ifndef TSR_RUNTIME_DTYPE_H
#define TSR_RUNTIME_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tsr_dtype { TSR_F32 = 0, TSR_BF16 } tsr_dtype;

typedef uint16_t tsr_bf16;

static inline size_t tsr_dtype_bytes(tsr_dtype dtype)
{
    return dtype == TSR_F32 ? sizeof(float) : sizeof(tsr_bf16);
}

static inline const char *tsr_dtype_name(tsr_dtype dtype)
{
    return dtype == TSR_F32 ? "f32" : "bf16";
}

static inline float tsr_bf16_to_f32(tsr_bf16 value)
{
    const uint32_t bits = (uint32_t)value << 16;
    float out;

    memcpy(&out, &bits, sizeof out);
    return out;
}

/** Round to nearest even; NaN stays NaN. */
static inline tsr_bf16 tsr_f32_to_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (tsr_bf16)((bits >> 16) | 0x40u);
    }
    return (tsr_bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#ifdef __cplusplus
}
#endif

#endif
