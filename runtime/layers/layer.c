#include "runtime/layers.h"

void tsr_layer_destroy(tsr_layer **layer_p)
{
    if (*layer_p != NULL) {
        (*layer_p)->ops->destroy(*layer_p);
        *layer_p = NULL;
    }
}
