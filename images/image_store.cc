// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/image_store.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "core/base/io.h"
#include "images/json.h"

namespace checkpointd::images {

namespace {

constexpr std::array<std::string_view, 4> kStateNames{"pending", "ready", "consumed", "stale"};

Result<ImageState> parse_state(const std::string& name, const std::string& object) {
    auto found = std::ranges::find(kStateNames, name);
    if (found == kStateNames.end())
        return fail(ErrorKind::kBadImage, object, fmt::format("\"{}\" is not a state", name));
    return static_cast<ImageState>(found - kStateNames.begin());
}

std::string state_json(ImageState state, const std::string& reason) {
    nlohmann::ordered_json json{{"state", to_string(state)}, {"reason", reason}};
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// One path component that no unit or id may escape from, nor be mistaken for one of our hidden files.
Result<void> check_component(const std::string& name, const char* what) {
    bool fits = !name.empty() && name.size() <= 200 && name[0] != '.' &&
                std::ranges::all_of(name, [](char c) { return c > ' ' && c < 127 && c != '/'; });
    if (!fits)
        return fail(ErrorKind::kBadInput, name, fmt::format("cannot be the name of {}", what));
    return {};
}

Result<void> check_id(const ImageId& id) {
    CKPT_TRY(check_component(id.unit, "a unit"));
    return check_component(id.id, "an image");
}

Result<ScopedFd> open_dir(int dir_fd, const std::string& name) {
    return open_at(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
}

Result<void> make_dir(int dir_fd, const std::string& name) {
    if (mkdirat(dir_fd, name.c_str(), 0700) != 0 && errno != EEXIST)
        return fail_errno(name, "cannot make the directory");
    return {};
}

Result<void> check_ownership(int fd, const std::string& path) {
    struct stat about {};
    if (fstat(fd, &about) != 0)
        return fail_errno(path, "cannot stat");
    if (about.st_uid != geteuid() || (about.st_mode & 022) != 0)
        return fail(ErrorKind::kDenied, path,
                    "others may write to this directory, so its images cannot be trusted",
                    fmt::format("chown it to uid {} and chmod it to 0700", geteuid()));
    return {};
}

Result<std::vector<std::string>> visible_dirs(int dir_fd, const std::string& object) {
    CKPT_ASSIGN(ScopedFd copy, open_dir(dir_fd, "."));
    std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(copy.get()), closedir);
    if (!stream)
        return fail_errno(object, "cannot list");
    copy.release();
    std::vector<std::string> names;
    while (const dirent* entry = readdir(stream.get())) {
        struct stat about {};
        if (entry->d_name[0] != '.' &&
            fstatat(dir_fd, entry->d_name, &about, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISDIR(about.st_mode))
            names.emplace_back(entry->d_name);
    }
    std::ranges::sort(names);
    return names;
}

Result<void> read_state(int dir_fd, StoredImage& image) {
    std::string object = image.id.text() + "/" + kStateName;
    CKPT_ASSIGN(std::string text, read_file(dir_fd, kStateName, 64 << 10));
    CKPT_ASSIGN(nlohmann::json json, parse_json_object(text, object));
    CKPT_ASSIGN(std::string name, json_string(json, "state", object));
    CKPT_ASSIGN(image.state, parse_state(name, object));
    CKPT_ASSIGN(image.state_reason, json_string(json, "reason", object));
    return {};
}

Result<void> read_info(int dir_fd, StoredImage& image) {
    CKPT_ASSIGN(std::string text, read_file(dir_fd, kImageInfoName, 16 << 20));
    CKPT_ASSIGN(image.info, parse_image_info(text, image.id.text() + "/" + kImageInfoName));
    return {};
}

StoredImage describe(int unit_fd, ImageId id) {
    StoredImage image;
    image.id = std::move(id);
    auto read = [&]() -> Result<void> {
        CKPT_ASSIGN(ScopedFd dir, open_dir(unit_fd, image.id.id));
        CKPT_TRY(read_state(dir.get(), image));
        return read_info(dir.get(), image);
    };
    if (auto done = read(); !done)
        image.damage = std::move(done).error();
    return image;
}

Result<std::vector<uint64_t>> parse_pids(const nlohmann::json& list, const std::string& object) {
    std::vector<uint64_t> pids;
    for (const nlohmann::json& item : list) {
        if (!item.is_number_unsigned())
            return fail(ErrorKind::kBadImage, object, "a PID is not a number");
        pids.push_back(item.get<uint64_t>());
    }
    return pids;
}

Result<std::map<std::string, std::string>> parse_extra(const nlohmann::json& json,
                                                       const std::string& object) {
    std::map<std::string, std::string> extra;
    auto found = json.find("extra");
    if (found == json.end())
        return extra;
    if (!found->is_object())
        return fail(ErrorKind::kBadImage, object, "\"extra\" is not an object");
    for (auto& [key, value] : found->items()) {
        if (!value.is_string())
            return fail(ErrorKind::kBadImage, object, fmt::format("\"{}\" is not a string", key));
        extra[key] = value.get<std::string>();
    }
    return extra;
}

uint64_t now_usec() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

}  // namespace

std::string_view to_string(ImageState state) { return kStateNames[static_cast<size_t>(state)]; }

std::string to_json(const ImageInfo& info) {
    nlohmann::ordered_json json{
        {"version", 1},
        {"unit", info.unit},
        {"created_usec", info.created_usec},
        {"mode", info.mode},
        {"boot_id", info.boot_id},
        {"kernel_release", info.kernel_release},
        {"architecture", info.architecture},
        {"bytes", info.bytes},
        {"duration_usec", info.duration_usec},
        {"frozen_usec", info.frozen_usec},
        {"max_pid", info.max_pid},
        {"main_pid", info.main_pid},
        {"pids", info.pids},
        {"extra", info.extra},
    };
    return json.dump(1, '\t', false, nlohmann::json::error_handler_t::replace) + "\n";
}

Result<ImageInfo> parse_image_info(const std::string& text, const std::string& object) {
    CKPT_ASSIGN(nlohmann::json json, parse_json_object(text, object));
    CKPT_ASSIGN(uint64_t version, json_number(json, "version", object));
    if (version != 1)
        return fail(ErrorKind::kBadImage, object, fmt::format("version {} is not known", version));
    ImageInfo info;
    CKPT_ASSIGN(info.unit, json_string(json, "unit", object));
    CKPT_ASSIGN(info.created_usec, json_number(json, "created_usec", object));
    CKPT_ASSIGN(info.mode, json_string(json, "mode", object));
    CKPT_ASSIGN(info.boot_id, json_string(json, "boot_id", object));
    CKPT_ASSIGN(info.kernel_release, json_string(json, "kernel_release", object));
    CKPT_ASSIGN(info.architecture, json_string(json, "architecture", object));
    CKPT_ASSIGN(info.bytes, json_number(json, "bytes", object));
    CKPT_ASSIGN(info.duration_usec, json_number(json, "duration_usec", object));
    CKPT_ASSIGN(info.frozen_usec, json_number(json, "frozen_usec", object));
    CKPT_ASSIGN(info.max_pid, json_number(json, "max_pid", object));
    CKPT_ASSIGN(info.main_pid, json_number(json, "main_pid", object));
    CKPT_ASSIGN(const nlohmann::json* pids, json_array(json, "pids", object));
    CKPT_ASSIGN(info.pids, parse_pids(*pids, object));
    CKPT_ASSIGN(info.extra, parse_extra(json, object));
    return info;
}

Result<ImageInfo> local_image_info() {
    ImageInfo info;
    utsname names{};
    if (uname(&names) != 0)
        return fail_errno("uname", "cannot ask for the kernel's release");
    CKPT_ASSIGN(info.boot_id, read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 128));
    while (!info.boot_id.empty() && info.boot_id.back() == '\n')
        info.boot_id.pop_back();
    info.created_usec = now_usec();
    info.kernel_release = names.release;
    info.architecture = names.machine;
    return info;
}

Result<ImageId> parse_image_id(const std::string& text) {
    size_t slash = text.find('/');
    if (slash == std::string::npos)
        return fail(ErrorKind::kBadInput, text, "is not an image", "write it as UNIT/ID");
    ImageId id{text.substr(0, slash), text.substr(slash + 1)};
    CKPT_TRY(check_id(id));
    return id;
}

Result<ImageStore> ImageStore::open(const std::string& root, bool create) {
    if (create)
        CKPT_TRY(make_dir(AT_FDCWD, root));
    CKPT_ASSIGN(ScopedFd dir, open_dir(AT_FDCWD, root));
    CKPT_TRY(check_ownership(dir.get(), root));
    return ImageStore(std::move(dir), root);
}

Result<ImageId> ImageStore::new_id(const std::string& unit) {
    uint64_t now = now_usec();
    auto seconds = static_cast<time_t>(now / 1'000'000);
    tm parts{};
    gmtime_r(&seconds, &parts);
    ImageId id{unit, fmt::format("{:04}{:02}{:02}T{:02}{:02}{:02}.{:06}Z", parts.tm_year + 1900,
                                 parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min,
                                 parts.tm_sec, now % 1'000'000)};
    CKPT_TRY(check_id(id));
    return id;
}

Result<PendingImage> ImageStore::begin(const ImageId& id) const {
    CKPT_TRY(check_id(id));
    CKPT_TRY(make_dir(root_.get(), id.unit));
    CKPT_ASSIGN(ScopedFd dir, unit_dir(id.unit));
    return PendingImage::begin(dir.get(), id.id);
}

Result<ImageDir> ImageStore::commit(PendingImage pending, const ImageInfo& info,
                                    const CommitOptions& options) {
    CKPT_TRY(pending.add_file(kImageInfoName, to_json(info)));
    CKPT_TRY(replace_file(pending.dir().fd(), kStateName, state_json(ImageState::kPending, ""),
                          options.sync));
    return pending.commit(options);
}

Result<ScopedFd> ImageStore::unit_dir(const std::string& unit) const {
    CKPT_TRY(check_component(unit, "a unit"));
    auto dir = open_dir(root_.get(), unit);
    if (!dir && dir.error().errno_code == ENOENT)
        return fail(ErrorKind::kNotFound, unit, "the unit has no images");
    if (!dir)
        return tl::unexpected(std::move(dir).error());
    CKPT_TRY(check_ownership(dir->get(), path_ + "/" + unit));
    return dir;
}

Result<std::vector<std::string>> ImageStore::units() const {
    return visible_dirs(root_.get(), path_);
}

Result<void> ImageStore::list_unit(const std::string& unit, std::vector<StoredImage>& out) const {
    auto dir = unit_dir(unit);
    if (!dir && dir.error().kind == ErrorKind::kNotFound)
        return {};
    if (!dir)
        return tl::unexpected(std::move(dir).error());
    CKPT_ASSIGN(std::vector<std::string> ids, visible_dirs(dir->get(), unit));
    for (std::string& id : ids)
        out.push_back(describe(dir->get(), {unit, std::move(id)}));
    return {};
}

Result<std::vector<StoredImage>> ImageStore::list(const std::optional<std::string>& unit) const {
    std::vector<StoredImage> images;
    if (unit) {
        CKPT_TRY(list_unit(*unit, images));
        return images;
    }
    CKPT_ASSIGN(std::vector<std::string> names, units());
    for (const std::string& name : names)
        CKPT_TRY(list_unit(name, images));
    std::ranges::stable_sort(images, {}, [](const StoredImage& image) { return image.id.id; });
    return images;
}

Result<StoredImage> ImageStore::get(const ImageId& id) const {
    CKPT_TRY(open_image(id));
    CKPT_ASSIGN(ScopedFd dir, unit_dir(id.unit));
    return describe(dir.get(), id);
}

Result<StoredImage> ImageStore::latest(const std::string& unit, ImageState state) const {
    CKPT_ASSIGN(std::vector<StoredImage> images, list(unit));
    for (auto image = images.rbegin(); image != images.rend(); ++image) {
        if (!image->damage && image->state == state)
            return std::move(*image);
    }
    return fail(ErrorKind::kNotFound, unit,
                fmt::format("the unit has no image that is {}", to_string(state)));
}

Result<ImageDir> ImageStore::open_image(const ImageId& id) const {
    CKPT_TRY(check_id(id));
    CKPT_ASSIGN(ScopedFd unit, unit_dir(id.unit));
    auto dir = open_dir(unit.get(), id.id);
    if (!dir && dir.error().errno_code == ENOENT)
        return fail(ErrorKind::kNotFound, id.text(), "there is no such image");
    if (!dir)
        return tl::unexpected(std::move(dir).error());
    return ImageDir::adopt(std::move(*dir), id.text());
}

Result<void> ImageStore::set_state(const ImageId& id, ImageState state,
                                   const std::string& reason) const {
    CKPT_ASSIGN(ImageDir dir, open_image(id));
    return replace_file(dir.fd(), kStateName, state_json(state, reason), /*sync=*/true);
}

// Renamed first: an image that is half removed must not be found.
Result<void> ImageStore::remove(const ImageId& id) const {
    CKPT_TRY(open_image(id));
    CKPT_ASSIGN(ScopedFd unit, unit_dir(id.unit));
    std::string doomed = "." + id.id + ".partial-removed";
    CKPT_TRY(remove_tree(unit.get(), doomed));
    if (renameat(unit.get(), id.id.c_str(), unit.get(), doomed.c_str()) != 0)
        return fail_errno(id.text(), "cannot remove the image");
    CKPT_TRY(remove_tree(unit.get(), doomed));
    // Goes only if it was the last image; otherwise ENOTEMPTY is as it should be.
    (void)unlinkat(root_.get(), id.unit.c_str(), AT_REMOVEDIR);
    return {};
}

Result<unsigned> ImageStore::clean() const {
    CKPT_ASSIGN(std::vector<std::string> names, units());
    unsigned removed = 0;
    for (const std::string& name : names) {
        CKPT_ASSIGN(ScopedFd dir, unit_dir(name));
        CKPT_ASSIGN(unsigned here, remove_partials(dir.get()));
        removed += here;
    }
    return removed;
}

}  // namespace checkpointd::images
