/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a plugin for CRIU looks like from outside. None of it may run here. */
#include <stdlib.h>

__attribute__((constructor)) static void is_loaded(void) {
    abort();
}

__attribute__((visibility("default"))) struct { const char* name; } CR_PLUGIN_DESC = {"for_criu"};
