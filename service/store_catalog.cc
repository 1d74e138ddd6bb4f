// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/store_catalog.h"

#include <algorithm>
#include <charconv>

#include "images/image_store.h"

namespace checkpointd {
namespace {

ImageSummary summarise(const images::StoredImage& image, const std::string& root,
                       const std::string& boot_id) {
    ImageSummary summary;
    summary.id = image.id.text();
    summary.unit = image.id.unit;
    summary.state = image.damage ? "damaged" : std::string(images::to_string(image.state));
    summary.path = root + "/" + summary.id;
    summary.created_usec = image.info.created_usec;
    summary.bytes = image.info.bytes;
    summary.frozen_usec = image.info.frozen_usec;
    summary.total_usec = image.info.duration_usec;
    if (auto pages = image.info.extra.find("pages"); pages != image.info.extra.end())
        std::from_chars(pages->second.data(), pages->second.data() + pages->second.size(),
                        summary.pages);
    summary.reason = image.damage ? image.damage->line() : image.state_reason;
    summary.mode = image.info.mode;
    summary.wakeable = image.info.extra.contains("listens") && image.info.boot_id == boot_id;
    summary.processes = static_cast<uint32_t>(image.info.pids.size());
    return summary;
}

}  // namespace

Result<std::vector<ImageSummary>> StoreCatalog::list() {
    CKPT_ASSIGN(auto store, images::ImageStore::open(root_, true));
    CKPT_ASSIGN(auto stored, store.list());
    CKPT_ASSIGN(const auto here, images::local_image_info());
    std::vector<ImageSummary> all;
    for (const auto& image : stored) all.push_back(summarise(image, root_, here.boot_id));
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
        return std::tie(b.created_usec, b.id) < std::tie(a.created_usec, a.id);
    });
    return all;
}

Result<ImageSummary> StoreCatalog::get(const std::string& id) {
    auto parsed = images::parse_image_id(id);
    if (!parsed)
        return fail(ErrorKind::kNotFound, "image \"" + id + "\"", "is not an image's id",
                    "crctl list shows them");
    CKPT_ASSIGN(auto store, images::ImageStore::open(root_, true));
    CKPT_ASSIGN(auto image, store.get(*parsed));
    CKPT_ASSIGN(const auto here, images::local_image_info());
    return summarise(image, root_, here.boot_id);
}

}  // namespace checkpointd
