// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The kinds by name. Each is defined in its own file; the order in which they are asked is kinds.cc.
#pragma once

#include "core/resources/kind.h"

namespace checkpointd {

extern const FileKind kRegularKind;   // regular.cc
extern const FileKind kMemfdKind;     // memfd.cc
extern const FileKind kPipeKind;      // pipe.cc
extern const FileKind kFifoKind;      // fifo.cc
extern const FileKind kEventfdKind;   // eventfd.cc
extern const FileKind kEpollKind;     // epoll.cc
extern const FileKind kTimerfdKind;   // timerfd.cc
extern const FileKind kSignalfdKind;  // signalfd.cc
extern const FileKind kInotifyKind;   // inotify.cc
extern const FileKind kPidfdKind;     // pidfd.cc
extern const FileKind kPluginFileKind;     // plugin_file.cc
extern const FileKind kUnixSocketKind;     // unix_socket.cc
extern const FileKind kInetSocketKind;     // inet_socket.cc
extern const FileKind kNetlinkSocketKind;  // netlink_socket.cc

}  // namespace checkpointd
