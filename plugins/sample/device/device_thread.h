/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The part of the sample device (sample.c) that lives in the programs that use it, as drivers have one. */
#ifndef CKPTD_SAMPLE_DEVICE_THREAD_H
#define CKPTD_SAMPLE_DEVICE_THREAD_H

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the calling thread the device thread: as long as DEVICE.park is there, so is DEVICE.parked. Never returns. It waits for
 * no lock of the program, an interpreter's above all: whoever holds that may stand still. */
__attribute__((noreturn)) void sample_device_thread(const char *device);

#ifdef __cplusplus
}
#endif

#endif
