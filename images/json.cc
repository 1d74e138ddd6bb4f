// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/json.h"

namespace checkpointd::images {

namespace {

Result<const nlohmann::json*> member(const nlohmann::json& json, const char* key,
                                     const std::string& object) {
    if (!json.is_object() || !json.contains(key))
        return fail(ErrorKind::kBadImage, object, fmt::format("\"{}\" is missing", key));
    return &json.find(key).value();
}

tl::unexpected<Error> wrong_type(const char* key, const std::string& object) {
    return fail(ErrorKind::kBadImage, object, fmt::format("\"{}\" has the wrong type", key));
}

}  // namespace

Result<nlohmann::json> parse_json_object(const std::string& text, const std::string& object) {
    auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() || !json.is_object())
        return fail(ErrorKind::kBadImage, object, "not a JSON object");
    return json;
}

Result<std::string> json_string(const nlohmann::json& json, const char* key,
                                const std::string& object) {
    CKPT_ASSIGN(const nlohmann::json* value, member(json, key, object));
    if (!value->is_string())
        return wrong_type(key, object);
    return value->get<std::string>();
}

Result<uint64_t> json_number(const nlohmann::json& json, const char* key,
                             const std::string& object) {
    CKPT_ASSIGN(const nlohmann::json* value, member(json, key, object));
    if (!value->is_number_unsigned())
        return wrong_type(key, object);
    return value->get<uint64_t>();
}

Result<const nlohmann::json*> json_array(const nlohmann::json& json, const char* key,
                                         const std::string& object) {
    CKPT_ASSIGN(const nlohmann::json* value, member(json, key, object));
    if (!value->is_array())
        return wrong_type(key, object);
    return value;
}

}  // namespace checkpointd::images
