/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "plugins/sample/device/device_thread.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

void sample_device_thread(const char *device) {
    char park[PATH_MAX], answer[PATH_MAX];
    snprintf(park, sizeof(park), "%s.park", device);
    snprintf(answer, sizeof(answer), "%s.parked", device);
    prctl(PR_SET_NAME, "device");
    for (int parked = 0;; usleep(1000)) {
        if ((access(park, F_OK) == 0) == parked)
            continue;
        parked = !parked;
        if (parked)
            close(open(answer, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
        else
            unlink(answer);
    }
}
