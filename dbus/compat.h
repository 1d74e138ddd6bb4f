// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One source for sdbus-c++ 1.2 (Debian 12) and 2.x (Debian 13). The only place that asks for the version;
// everything else stays in what both have in common. Used by the adaptors, never by domain code.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <sys/types.h>
#include <utility>
#include <vector>

#include <sdbus-c++/sdbus-c++.h>

#include "core/base/error.h"

namespace checkpointd::bus {

using Connection = sdbus::IConnection;
using VariantMap = std::map<std::string, sdbus::Variant>;

inline constexpr const char* kService = "org.checkpointd1";
inline constexpr const char* kManagerPath = "/org/checkpointd1";
inline constexpr const char* kJobPathPrefix = "/org/checkpointd1/job/";
inline constexpr const char* kErrorPrefix = "org.checkpointd1.Error.";

// What poll(2) needs to know of a connection. `deadline_usec` is CLOCK_MONOTONIC, UINT64_MAX for none.
struct PollData {
    int fd = -1;
    short events = 0;
    int event_fd = -1;  // 2.x wakes its loop through a second descriptor
    uint64_t deadline_usec = UINT64_MAX;
};

#if SDBUSCPP_MAJOR >= 2
using AsyncError = std::optional<sdbus::Error>;
using ServiceName = sdbus::ServiceName;

inline PollData poll_data(const Connection& connection) {
    auto data = connection.getEventLoopPollData();
    uint64_t deadline = data.timeout == std::chrono::microseconds::max()
                            ? UINT64_MAX
                            : static_cast<uint64_t>(data.timeout.count());
    return {data.fd, data.events, data.eventFd, deadline};
}
inline bool process_pending(Connection& connection) { return connection.processPendingEvent(); }
inline sdbus::Error make_error(const std::string& name, const std::string& text) {
    return sdbus::Error(sdbus::Error::Name{name}, text);
}
inline void emit_changed(sdbus::IObject& object, const char* interface,
                         const std::vector<std::string>& names) {
    object.emitPropertiesChangedSignal(interface, {names.begin(), names.end()});
}
inline sdbus::Message current_message(const sdbus::IObject& object) {
    return object.getCurrentlyProcessedMessage();
}
inline void finish(sdbus::IProxy&) {}  // signal handlers are live as soon as they are registered
#else
using AsyncError = const sdbus::Error*;
using ServiceName = std::string;

inline PollData poll_data(const Connection& connection) {
    auto data = connection.getEventLoopPollData();
    return {data.fd, data.events, -1, data.timeout_usec};
}
inline bool process_pending(Connection& connection) { return connection.processPendingRequest(); }
inline sdbus::Error make_error(const std::string& name, const std::string& text) {
    return sdbus::Error(name, text);
}
inline void emit_changed(sdbus::IObject& object, const char* interface,
                         const std::vector<std::string>& names) {
    object.emitPropertiesChangedSignal(interface, names);
}
inline const sdbus::Message& current_message(const sdbus::IObject& object) {
    return *object.getCurrentlyProcessedMessage();
}
inline void finish(sdbus::IProxy& proxy) { proxy.finishRegistration(); }
#endif

// The system bus; no thread is started, the owner runs the loop.
inline std::unique_ptr<Connection> open_system() { return sdbus::createSystemBusConnection(); }
inline void request_name(Connection& connection, const std::string& name) {
    connection.requestName(ServiceName{name});
}
inline std::unique_ptr<sdbus::IProxy> make_proxy(Connection& connection, const std::string& service,
                                                 const std::string& path) {
    return sdbus::createProxy(connection, ServiceName{service}, sdbus::ObjectPath{path});
}

template <typename T>
sdbus::Variant variant(T value) {
    return sdbus::Variant{std::move(value)};
}

// Our error as it goes over the bus, and back again at the client.
inline sdbus::Error to_bus(const Error& error) {
    return make_error(kErrorPrefix + std::string(to_string(error.kind)), error.text());
}

// The kind of an error that came over the bus; kSystem for one that is not ours.
inline Error from_bus(const sdbus::Error& error, const std::string& object) {
    const std::string name = error.getName();
    if (name.starts_with(kErrorPrefix))
        for (ErrorKind kind : {ErrorKind::kUnsupported, ErrorKind::kBadInput, ErrorKind::kBadImage,
                               ErrorKind::kNotFound, ErrorKind::kConflict, ErrorKind::kDenied,
                               ErrorKind::kGone, ErrorKind::kTimeout, ErrorKind::kCancelled,
                               ErrorKind::kInternal, ErrorKind::kSystem})
            if (name == kErrorPrefix + std::string(to_string(kind)))
                return Error{kind, {}, error.getMessage(), {}, 0, {}};
    return Error{ErrorKind::kSystem, object, name + ": " + error.getMessage(), {}, 0, {}};
}

// Ends at this boundary what the library throws.
template <typename F>
auto guard(const std::string& object, F&& call) -> Result<decltype(call())> {
    try {
        if constexpr (std::is_void_v<decltype(call())>) {
            call();
            return {};
        } else {
            return call();
        }
    } catch (const sdbus::Error& error) {
        return tl::unexpected(from_bus(error, object));
    }
}

}  // namespace checkpointd::bus
