//! From tableflip's and ecdysis's API to this one: tableflip 1.2, ecdysis 1.1.
//!
//! | tableflip (Go) | ecdysis (Rust, with tokio) | here |
//! | --- | --- | --- |
//! | `New(Options)` | `TokioEcdysisBuilder::new(signal)` | [`Upgrader::new`](crate::Upgrader::new), with [`Config`](crate::Config) |
//! | `Options.UpgradeTimeout` | | [`Config::upgrade_timeout`](fn@crate::Config::upgrade_timeout) |
//! | `Options.PIDFile` | `set_pid_file` | [`Config::pid_file`](fn@crate::Config::pid_file) |
//! | `Options.ListenConfig` | the closure of `build_listen_tcp` | [`SocketOptions`](crate::SocketOptions), or [`Upgrader::tcp_on`](crate::Upgrader::tcp_on) |
//! | `Upgrader.Fds` | the builder itself | the upgrader itself |
//! | `Fds.Listen("tcp", addr)` | `listen_tcp` | [`Upgrader::tcp`](crate::Upgrader::tcp) |
//! | `Fds.Listen("unix", path)` | `listen_unix` | [`Upgrader::unix`](crate::Upgrader::unix), with `unix:` before the path |
//! | | `listen_unix_seqpacket` | [`Upgrader::seqpacket`](crate::Upgrader::seqpacket) |
//! | `Fds.ListenPacket("udp", addr)` | `build_stream_udp` | [`Upgrader::udp`](crate::Upgrader::udp) |
//! | `Fds.ListenPacket("unixgram", path)` | | [`Upgrader::unix_datagram`](crate::Upgrader::unix_datagram) |
//! | `Fds.Conn`, `Fds.AddConn` | | [`Upgrader::conn`](crate::Upgrader::conn), [`Upgrader::add_conn`](crate::Upgrader::add_conn) |
//! | `Fds.File`, `Fds.AddFile` | | [`Upgrader::file`](crate::Upgrader::file), [`Upgrader::add_conn`](crate::Upgrader::add_conn) |
//! | `Upgrader.Ready()` | `ready` | [`Upgrader::ready`](crate::Upgrader::ready) |
//! | a goroutine that calls `Upgrade()` for each signal | the signal of `new` | [`Config::upgrade_signals`](fn@crate::Config::upgrade_signals), HUP by default |
//! | `Upgrader.Upgrade()` and its error | `upgrade_on_socket` | [`Remote::upgrade`](crate::Remote::upgrade), whose answer is the [`Report`](crate::Report); or [`Upgrader::request_upgrade`](crate::Upgrader::request_upgrade) and [`Notice::Upgraded`](crate::Notice::Upgraded) |
//! | `Upgrader.Exit()`, a channel | the future that `ready` answers | [`Phase::Draining`](crate::Phase::Draining): do not accept any more, and call [`Upgrader::drained`](crate::Upgrader::drained) at the end; then [`Phase::Exited`](crate::Phase::Exited) |
//! | `Upgrader.Stop()` | `stop_on_signal` | [`Upgrader::request_shutdown`](crate::Upgrader::request_shutdown), or QUIT and TERM |
//! | `Upgrader.HasParent()` | `is_child` | [`Upgrader::is_successor`](crate::Upgrader::is_successor), [`Upgrader::predecessor`](crate::Upgrader::predecessor) |
//! | `Upgrader.WaitForParent(ctx)` | | [`Upgrader::predecessor_watch`](crate::Upgrader::predecessor_watch), or [`Notice::PredecessorGone`](crate::Notice::PredecessorGone) |
//! | | | [`Upgrader::hand_over_with`](crate::Upgrader::hand_over_with), [`Upgrader::tell`](crate::Upgrader::tell): state and messages |
//! | | | [`Server`](crate::Server): sessions that move |
//!
//! What is different:
//!
//! - **The old process may come back.** `Exit()` means the end; `Draining` does not: if the new process fails
//!   within its probation, the phase is `Serving` again. Keep the listeners until `Exited`.
//! - **Accept only while `Serving`.** A successor that has said ready waits for a word from its predecessor, so
//!   that never two of them accept.
//! - **A HUP in the middle of an upgrade is no error.** It is carried out afterwards.
//! - **There is no goroutine or task behind it.** The upgrader lives by its [turns](crate::Upgrader::turn). Poll its
//!   descriptor and mind its [deadline](crate::Upgrader::next_deadline).
