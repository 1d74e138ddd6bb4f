/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * <linux/kfd_ioctl.h> includes <drm/drm.h>, which Debian's linux-libc-dev leaves out. Integer types are all
 * that it needs from there.
 */
#ifndef CHECKPOINTD_UAPI_DRM_H
#define CHECKPOINTD_UAPI_DRM_H

#include <linux/types.h>

#endif
