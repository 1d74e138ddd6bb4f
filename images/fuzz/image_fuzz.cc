// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libFuzzer target: any bytes as the records of an image file, whose type the first byte tells. The header
// is right, or all would end there. Built with clang only.
#include <cstdint>
#include <fcntl.h>
#include <sys/mman.h>

#include "images/image_file.h"
#include "images/records.h"

using namespace checkpointd;
using namespace checkpointd::images;

namespace {

Result<void> walk(ImageType type, const uint8_t* data, size_t size) {
    ScopedFd file(memfd_create("fuzz", MFD_CLOEXEC));
    ScopedFd copy(fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    CKPT_ASSIGN(auto writer, ImageWriter::start(std::move(copy), "fuzz", type));
    CKPT_TRY(writer.payload(data, size));
    CKPT_TRY(writer.finish());
    CKPT_ASSIGN(auto reader, ImageReader::start(std::move(file), "fuzz", type));
    return visit_records(reader, type, [](const auto&, auto) -> Result<void> { return {}; });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size > 0)
        (void)walk(static_cast<ImageType>(data[0] % image_types().size()), data + 1, size - 1);
    return 0;
}
