// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <fcntl.h>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>

#include "core/base/scoped_fd.h"
#include "core/kernel/page_scan.h"
#include "images/image_dir.h"
#include "images/proto/memory.pb.h"

namespace checkpointd {

// The page at `address` as the image holds it; empty where it has none.
inline std::string page_in_image(const images::ImageDir& dir, images::ImageType type, uint64_t id,
                                 uint64_t address) {
    auto reader = dir.open_image(type, id);
    EXPECT_TRUE(reader);
    auto head = reader->expect<images::pagemap_head>();
    uint64_t offset = 0;
    auto entries = reader->rest<images::pagemap_entry>();
    EXPECT_TRUE(entries);
    for (const auto& entry : *entries) {
        uint64_t size = entry.nr_pages() * kPageSize;
        if (address >= entry.vaddr() && address < entry.vaddr() + size) {
            auto name = images::image_name(images::ImageType::kPages, head->pages_id());
            const ScopedFd file(openat(dir.fd(), name.c_str(), O_RDONLY | O_CLOEXEC));
            std::string page(kPageSize, 0);
            EXPECT_EQ(pread(file.get(), page.data(), page.size(),
                            static_cast<off_t>(offset + address - entry.vaddr())),
                      ssize_t{kPageSize});
            return page;
        }
        offset += size;
    }
    return {};
}

}  // namespace checkpointd
