// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "service/manager.h"

namespace checkpointd {

// The catalog over the image store on disk.
class StoreCatalog : public ImageCatalog {
  public:
    explicit StoreCatalog(std::string root) : root_(std::move(root)) {}
    Result<std::vector<ImageSummary>> list() override;
    Result<ImageSummary> get(const std::string& id) override;

  private:
    std::string root_;
};

}  // namespace checkpointd
