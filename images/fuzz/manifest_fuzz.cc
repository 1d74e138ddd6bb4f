// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libFuzzer target: any text as a manifest and as image info. Built with clang only.
#include <cstdint>
#include <string>

#include "images/image_store.h"
#include "images/manifest.h"

using namespace checkpointd::images;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string text(reinterpret_cast<const char*>(data), size);
    (void)parse_manifest(text, "fuzz");
    (void)parse_image_info(text, "fuzz");
    return 0;
}
