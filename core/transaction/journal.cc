// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/transaction/journal.h"

#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

constexpr std::string_view kFileName = "undo";

// FNV-1a, 64 bits: enough to recognise a torn line, which is all that may happen to it.
uint64_t checksum(std::string_view text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (unsigned char byte : text)
        hash = (hash ^ byte) * 0x100000001b3u;
    return hash;
}

bool is_plain(unsigned char byte) {
    return byte > 0x20 && byte < 0x7f && byte != '%';
}

// A word without blanks and line ends; the empty word is a lone '%'.
std::string escape(std::string_view word) {
    if (word.empty())
        return "%";
    std::string out;
    for (unsigned char byte : word)
        out += is_plain(byte) ? std::string(1, static_cast<char>(byte)) : fmt::format("%{:02x}", byte);
    return out;
}

std::string unescape(std::string_view word) {
    std::string out;
    for (size_t i = 0; i < word.size(); ++i) {
        unsigned byte = 0;
        if (word[i] != '%') {
            out += word[i];
        } else if (i + 2 < word.size()) {
            std::from_chars(word.data() + i + 1, word.data() + i + 3, byte, 16);
            out += static_cast<char>(byte);
            i += 2;
        }
    }
    return out;
}

std::vector<std::string_view> words(std::string_view line) {
    std::vector<std::string_view> out;
    while (!line.empty()) {
        size_t end = line.find(' ');
        out.push_back(line.substr(0, end));
        line = end == std::string_view::npos ? std::string_view() : line.substr(end + 1);
    }
    return out;
}

template <typename T>
bool parse_number(std::string_view text, T& value, int base) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    return error == std::errc() && end == text.data() + text.size();
}

// "add ID KIND ARG... SUM" or "drop ID SUM"; lines that are torn or unknown change nothing.
void apply_line(std::string_view line, std::map<uint64_t, UndoRecord>& pending) {
    size_t last = line.rfind(' ');
    uint64_t sum = 0, id = 0;
    if (last == std::string_view::npos || !parse_number(line.substr(last + 1), sum, 16) ||
        sum != checksum(line.substr(0, last)))
        return;
    auto word = words(line.substr(0, last));
    if (word.size() < 2 || !parse_number(word[1], id, 10))
        return;
    if (word[0] == "drop") {
        pending.erase(id);
    } else if (word[0] == "add" && word.size() >= 3) {
        UndoRecord record{id, unescape(word[2]), {}};
        for (size_t i = 3; i < word.size(); ++i)
            record.args.push_back(unescape(word[i]));
        pending[id] = std::move(record);
    }
}

// A record lock that this process holds until it dies or closes the file. Unlike flock(2) it is not
// shared with forked children, so a task forked by a dead worker does not look like the worker.
Result<void> lock(int fd, const std::string& directory) {
    struct flock whole = {};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    if (fcntl(fd, F_SETLK, &whole) == 0)
        return {};
    if (errno == EACCES || errno == EAGAIN)
        return fail(ErrorKind::kConflict, directory, "the job of this journal is still alive");
    return fail_errno(directory, "cannot lock the journal");
}

// Two replays may meet: PID 1 runs one when a worker dies, a daemon another.
Result<void> wait_for_lock(int fd, const std::string& directory, std::chrono::milliseconds patience) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    for (;;) {
        auto locked = lock(fd, directory);
        if (locked || locked.error().kind != ErrorKind::kConflict ||
            std::chrono::steady_clock::now() >= deadline)
            return locked;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
}

bool is_unlinked(int fd) {
    struct stat status = {};
    return fstat(fd, &status) == 0 && status.st_nlink == 0;
}

Result<void> remove_journal(const std::string& directory) {
    std::string file = fmt::format("{}/{}", directory, kFileName);
    if (unlink(file.c_str()) != 0 && errno != ENOENT)
        return fail_errno(file, "cannot remove the journal");
    if (rmdir(directory.c_str()) != 0 && errno != ENOENT)
        return fail_errno(directory, "cannot remove the journal's directory");
    return {};
}

}  // namespace

void UndoTable::add(std::string kind, UndoAction action, UndoTime time) {
    kinds_.emplace(std::move(kind), Kind{std::move(action), std::move(time)});
}

const UndoAction* UndoTable::find(std::string_view kind) const {
    auto found = kinds_.find(kind);
    return found == kinds_.end() ? nullptr : &found->second.action;
}

std::chrono::microseconds UndoTable::time_of(std::string_view kind, const UndoArgs& args) const {
    auto found = kinds_.find(kind);
    return found == kinds_.end() || !found->second.time ? std::chrono::microseconds(0) : found->second.time(args);
}

std::vector<UndoRecord> Journal::parse(std::string_view text) {
    std::map<uint64_t, UndoRecord> pending;
    while (!text.empty()) {
        size_t end = text.find('\n');
        if (end == std::string_view::npos)
            break;  // torn: its step was never taken, because add() had not returned
        apply_line(text.substr(0, end), pending);
        text.remove_prefix(end + 1);
    }
    std::vector<UndoRecord> out;
    for (auto& [id, record] : pending)
        out.push_back(std::move(record));
    return out;
}

Result<Journal> Journal::create(std::string directory, const UndoTable& table) {
    if (mkdir(directory.c_str(), 0700) != 0) {
        if (errno == EEXIST)
            return fail(ErrorKind::kConflict, directory, "there is a journal of an earlier job",
                        "replay it first");
        return fail_errno(directory, "cannot make the journal's directory");
    }
    CKPT_ASSIGN(ScopedFd file, open_at(AT_FDCWD, fmt::format("{}/{}", directory, kFileName),
                                       O_RDWR | O_CREAT | O_EXCL | O_APPEND, 0600));
    CKPT_TRY(lock(file.get(), directory));
    return Journal(std::move(directory), std::move(file), table);
}

Result<bool> Journal::replay(const std::string& directory, const UndoTable& table,
                             std::chrono::milliseconds patience) {
    std::string path = fmt::format("{}/{}", directory, kFileName);
    ScopedFd file(open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC));
    if (!file && errno == ENOENT) {
        CKPT_TRY(remove_journal(directory));  // died between mkdir and open, or after the unlink
        return false;
    }
    if (!file)
        return fail_errno(path, "cannot open the journal");
    CKPT_TRY(wait_for_lock(file.get(), directory, patience));
    if (is_unlinked(file.get()))
        return false;  // whom we waited for has done it
    CKPT_ASSIGN(std::string text, read_fd(file.get(), path));
    Journal journal(directory, std::move(file), table);
    for (UndoRecord& record : parse(text)) {
        journal.next_id_ = record.id + 1;
        journal.pending_.emplace(record.id, std::move(record));
    }
    // A torn last line gets its line end, so that the records we append stay whole.
    if (!text.empty() && text.back() != '\n')
        CKPT_TRY(write_all(journal.file_.get(), "\n", 1, path));
    const bool is_needed = !journal.empty();
    CKPT_TRY(journal.rollback());
    CKPT_TRY(journal.close());
    return is_needed;
}

// Read without the lock, for whoever has to know before it waits for that.
std::chrono::microseconds Journal::replay_time(const std::string& directory, const UndoTable& table) {
    std::chrono::microseconds all(0);
    if (auto text = read_file(AT_FDCWD, fmt::format("{}/{}", directory, kFileName)))
        for (const UndoRecord& record : parse(*text))
            all = add_times(all, table.time_of(record.kind, record.args));
    return all;
}

std::chrono::microseconds Journal::rollback_time() const {
    std::chrono::microseconds all(0);
    for (const auto& [id, record] : pending_)
        all = add_times(all, table_->time_of(record.kind, record.args));
    return all;
}

Result<void> Journal::append(std::string line) {
    line += fmt::format(" {:016x}\n", checksum(line));
    ssize_t n = write(file_.get(), line.data(), line.size());
    if (n == static_cast<ssize_t>(line.size()))
        return {};
    int code = n < 0 ? errno : ENOSPC;
    if (n > 0)
        (void)!write(file_.get(), "\n", 1);  // end the torn line
    return fail_errno(directory_, "cannot write to the journal", code);
}

Result<uint64_t> Journal::add(std::string_view kind, UndoArgs args) {
    if (!table_->find(kind))
        return fail(ErrorKind::kInternal, std::string(kind), "this kind of undo is not in the table");
    uint64_t id = next_id_++;
    std::string line = fmt::format("add {} {}", id, escape(kind));
    for (const std::string& arg : args)
        line += ' ' + escape(arg);
    CKPT_TRY(append(std::move(line)));
    pending_.emplace(id, UndoRecord{id, std::string(kind), std::move(args)});
    return id;
}

Result<void> Journal::drop(uint64_t id) {
    if (!pending_.contains(id))
        return {};
    CKPT_TRY(append(fmt::format("drop {}", id)));
    pending_.erase(id);
    return {};
}

Result<void> Journal::run(const UndoRecord& record) {
    const UndoAction* action = table_->find(record.kind);
    if (!action)
        return fail(ErrorKind::kInternal, directory_,
                    fmt::format("the journal asks for an unknown undo '{}'", record.kind),
                    "it was written by another version of checkpointd");
    return (*action)(record.args);
}

Result<void> Journal::undo(uint64_t id) {
    auto found = pending_.find(id);
    if (found == pending_.end())
        return {};
    CKPT_TRY(run(found->second));
    return drop(id);
}

Result<void> Journal::rollback() {
    std::vector<uint64_t> ids;
    for (auto it = pending_.rbegin(); it != pending_.rend(); ++it)
        ids.push_back(it->first);
    std::vector<Error> failures;
    for (uint64_t id : ids)
        if (auto done = undo(id); !done)
            failures.push_back(std::move(done).error());
    if (failures.empty())
        return {};
    Error error{failures.front().kind, directory_, "some steps could not be undone", {}, 0, {}};
    error.causes = std::move(failures);
    return tl::unexpected(std::move(error));
}

Result<void> Journal::close() {
    if (!pending_.empty())
        return fail(ErrorKind::kInternal, directory_, "a journal with pending records is kept");
    return remove_journal(directory_);
}

}  // namespace checkpointd
