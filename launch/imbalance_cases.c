/* Clusters and models of `tessera bench imbalance`. */
#include "launch/imbalance.h"

#include <string.h>

/* Rates are what good programs achieve: products 50 to 70 % of the peak, links 80 to 85 %. */
static const imbalance_cluster clusters[] = {
    {"v100",
     "8 V100 a node, NVLink, 100 Gbit/s a node (Hecate's cluster A)",
     {.node_ranks = 8,
      .flops = 60e12,
      .memory_bytes_s = 0.75e12,
      .node_bytes_s = 120e9,
      .network_bytes_s = 10.5e9,
      .node_latency_s = 20e-6,
      .network_latency_s = 40e-6,
      .plan_s = 200e-6}},
    {"a100",
     "8 A100 a node, NVSwitch, 400 Gbit/s a node (Hecate's cluster B)",
     {.node_ranks = 8,
      .flops = 150e12,
      .memory_bytes_s = 1.4e12,
      .node_bytes_s = 240e9,
      .network_bytes_s = 42e9,
      .node_latency_s = 20e-6,
      .network_latency_s = 40e-6,
      .plan_s = 200e-6}},
    {"h100",
     "8 H100 a node, NVSwitch, 400 Gbit/s a GPU",
     {.node_ranks = 8,
      .flops = 500e12,
      .memory_bytes_s = 3.0e12,
      .node_bytes_s = 370e9,
      .network_bytes_s = 340e9,
      .node_latency_s = 20e-6,
      .network_latency_s = 40e-6,
      .plan_s = 200e-6}},
};

/* The paper's systems send a row once per expert, and gradients in 2 bytes. */
#define PAPER(layers_, hidden_, seq_)                                                              \
    {                                                                                              \
        .layers = (layers_), .experts = 64, .top_k = 2, .hidden = (hidden_),                       \
        .width = 2 * (hidden_), .matrices = 2, .tokens = 16384, .seq_len = (seq_),                 \
        .gradient_bytes = 2                                                                        \
    }

static const imbalance_shape shapes[] = {
    {"gpt-moe-s", "the paper's: 12 layers, d 768, 64 experts of 1536, top-2", PAPER(12, 768, 2048)},
    {"gpt-moe-l", "the paper's: 12 layers, d 1536", PAPER(12, 1536, 2048)},
    {"bert-moe", "the paper's: 12 layers, d 1024", PAPER(12, 1024, 512)},
    {"bert-moe-deep", "the paper's: 24 layers, d 1024", PAPER(24, 1024, 512)},
    {"fine",
     "48 layers, d 2048, 128 experts of 768, top-8",
     {.layers = 48,
      .experts = 128,
      .top_k = 8,
      .hidden = 2048,
      .width = 768,
      .matrices = 3,
      .tokens = 16384,
      .seq_len = 4096,
      .skips_masked = true,
      .sends_once = true,
      .rematerializes = true,
      .gradient_bytes = 4}},
    {"large",
     "58 layers, d 7168, 256 experts of 2048, top-8",
     {.layers = 58,
      .experts = 256,
      .top_k = 8,
      .hidden = 7168,
      .width = 2048,
      .matrices = 3,
      .tokens = 8192,
      .seq_len = 4096,
      .skips_masked = true,
      .sends_once = true,
      .rematerializes = true,
      .gradient_bytes = 4}},
};

tsr_status imbalance_find_cluster(const char *name, const imbalance_cluster **out)
{
    for (size_t i = 0; i < sizeof clusters / sizeof *clusters; ++i) {
        if (strcmp(clusters[i].name, name) == 0) {
            *out = &clusters[i];
            return TSR_OK;
        }
    }
    return TSR_FAIL(TSR_ERR_ARG, "cluster %s: must be v100, a100 or h100", name);
}

tsr_status imbalance_find_shape(const char *name, const imbalance_shape **out)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        if (strcmp(shapes[i].name, name) == 0) {
            *out = &shapes[i];
            return TSR_OK;
        }
    }
    return TSR_FAIL(TSR_ERR_ARG,
                    "model %s: must be gpt-moe-s, gpt-moe-l, bert-moe, bert-moe-deep, fine or "
                    "large",
                    name);
}

tsr_status imbalance_find_policies(const char *word, bool is_wanted[TSR_PLACEMENT_POLICIES])
{
    tsr_placement_policy one = TSR_PLACEMENT_POLICIES;

    if (strcmp(word, "all") != 0) {
        TSR_TRY(tsr_placement_find(word, &one));
    }
    for (int i = 0; i < TSR_PLACEMENT_POLICIES; ++i) {
        is_wanted[i] = one == TSR_PLACEMENT_POLICIES || i == (int)one;
    }
    return TSR_OK;
}
