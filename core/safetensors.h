/* core/safetensors.h - inside an open safetensors file. */
#ifndef MAV_CORE_SAFETENSORS_H
#define MAV_CORE_SAFETENSORS_H

#include "mav.h"

const char *mav__safetensors_path(const mav_safetensors *s);
const mav_safetensors_entry *mav__safetensors_find(const mav_safetensors *s, const char *name); /* NULL: none */

#endif
