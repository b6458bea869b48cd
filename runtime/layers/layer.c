#include "runtime/layers.h"

void tsr_layer_destroy(tsr_layer **layer_p)
{
    tsr_layer *layer = *layer_p;

    if (layer != NULL && layer->ops->destroy != NULL) {
        layer->ops->destroy(layer);
    } else {
        tsr_mem_free(layer);
    }
    *layer_p = NULL;
}
