/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the placeholder and those who speak with it agree on; C and C++.
 */
#pragma once

/* The value of the queued SIGURG. */
enum HolderCommand {
    kHolderHold = 1,      /* take the numbers; done when it is called HOLDER_HOLDS */
    kHolderGiveBack = 2,  /* free the numbers; done when it is called HOLDER_GAVE_BACK */
    kHolderLeave = 3,     /* exit with success */
};

/* Its names (PR_SET_NAME), 15 bytes at most. */
#define HOLDER_WAITS "suspending"
#define HOLDER_HOLDS "suspended"
#define HOLDER_GAVE_BACK "resuming"
