// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <string_view>

#include "core/base/error.h"
#include "images/image_file.h"

namespace checkpointd::images {

// Gets each record of a file with the raw bytes that follow it, in file order.
using RecordVisitor =
    std::function<Result<void>(const google::protobuf::MessageLite& record, std::string_view payload)>;

// Walks through a file of any type that has records, and checks that its parts fit together: for tools
// that show, check or copy images without knowing what they mean. One payload at a time is in memory.
Result<void> visit_records(ImageReader& reader, ImageType type, const RecordVisitor& visit);

}  // namespace checkpointd::images
