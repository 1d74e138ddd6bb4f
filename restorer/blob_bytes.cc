// SPDX-License-Identifier: LGPL-2.1-or-later
#include "restorer/blob_bytes.h"

namespace checkpointd::restorer {

namespace {
constexpr unsigned char kBlob[] = {
#include "checkpointd-blob.inc"
};
}  // namespace

std::span<const std::byte> blob_bytes() {
    return std::as_bytes(std::span(kBlob));
}

}  // namespace checkpointd::restorer
