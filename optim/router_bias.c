#include "optim/optim.h"

void tsr_router_bias_update(float *bias, const double *counts, int64_t layers, int64_t experts,
                            double rate)
{
    for (int64_t layer = 0; layer < layers; ++layer) {
        const double *load = counts + layer * experts;
        double sum = 0.0;

        for (int64_t e = 0; e < experts; ++e) {
            sum += load[e];
        }
        for (int64_t e = 0; sum > 0.0 && e < experts; ++e) {
            /* counts are whole numbers: compared with the sum, equality is exact */
            const double above = load[e] * (double)experts - sum;
            bias[layer * experts + e] += (float)(above < 0.0 ? rate : above > 0.0 ? -rate : 0.0);
        }
    }
}
