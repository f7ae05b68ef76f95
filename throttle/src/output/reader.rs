//! Whoever reads the events: whether anybody still does.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
};

use log::debug;
use nix::sys::stat::{SFlag, fstat};
use tokio::io::{Interest, unix::AsyncFd};

/// The other end of a pipe or a socket that is written to.
#[derive(Debug)]
pub(super) struct Reader {
    /// A descriptor of our own for what is written to.
    fd: Arc<OwnedFd>,
    /// Set when it is first waited for: only then there is a runtime for sure.
    watched: OnceLock<Option<AsyncFd<Arc<OwnedFd>>>>,
}

impl Reader {
    /// The reader of what is written to `fd`. None if that is a file or a
    /// device: those have no other end that could go away, and most of them
    /// cannot be waited for.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let mode = SFlag::from_bits_truncate(fstat(fd).ok()?.st_mode) & SFlag::S_IFMT;
        if mode != SFlag::S_IFIFO && mode != SFlag::S_IFSOCK {
            return None;
        }
        Some(Self {
            fd: Arc::new(fd.try_clone_to_owned().ok()?),
            watched: OnceLock::new(),
        })
    }

    /// Waits until nobody reads any more; for ever if it cannot be waited for.
    ///
    /// Linux says EPOLLERR at the write end of a pipe without readers
    /// (`pipe_poll` in fs/pipe.c), and EPOLLHUP at a socket that is shut down
    /// both ways. One that is only shut down for reading, as systemd hands it to
    /// a service, is still read from at the other end.
    pub(super) async fn gone(&self) {
        // To wait for errors alone would leave out EPOLLHUP.
        let either = Interest::ERROR | Interest::WRITABLE;
        let watched = self.watched.get_or_init(|| {
            // SAFETY: it is one descriptor, open for as long as anybody has it.
            unsafe { AsyncFd::register_with_interest(Arc::clone(&self.fd), either) }
                .inspect_err(|error| debug!("the reader of the events is not watched: {error}"))
                .ok()
        });
        if let Some(fd) = watched {
            while let Ok(mut guard) = fd.ready(either).await {
                if guard.ready().is_error() || guard.ready().is_write_closed() {
                    return;
                }
                guard.clear_ready();
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        future::Future,
        io::{Read as _, Write as _, pipe},
        net::Shutdown,
        os::{fd::AsFd, unix::net::UnixStream},
        time::Duration,
    };

    use super::*;
    use futures_util::poll;
    use tokio::{runtime::Builder, task::yield_now, time::timeout};

    fn run(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let bounded = async { timeout(Duration::from_secs(20), test).await };
        runtime.block_on(bounded).expect("to end in time");
    }

    /// Says that the reader is there, `then` does away with it, and says that it
    /// is gone.
    async fn is_gone_after(fd: impl AsFd, then: impl FnOnce()) {
        let reader = Reader::of(fd.as_fd()).expect("it has a reader");
        is_there(&reader).await;
        then();
        reader.gone().await;
        // It stays so.
        reader.gone().await;
    }

    /// Asks what there is to know of it a few times.
    async fn is_there(reader: &Reader) {
        let mut gone = std::pin::pin!(reader.gone());
        for _ in 0..100 {
            assert!(poll!(&mut gone).is_pending(), "it is there");
            yield_now().await;
        }
    }

    #[test]
    fn the_reader_of_a_pipe_goes_away() {
        run(async {
            let (reader, writer) = pipe().unwrap();
            is_gone_after(writer, || drop(reader)).await;
        });
    }

    #[test]
    fn the_reader_of_a_full_pipe_goes_away() {
        run(async {
            let (mut reader, mut writer) = pipe().unwrap();
            let full = [0; 65_536];
            writer.write_all(&full).unwrap();
            let other = writer.try_clone().unwrap();
            is_gone_after(other, || {
                reader.read_exact(&mut vec![0; full.len()]).unwrap();
                writer.write_all(&full).unwrap();
                drop(reader);
            })
            .await;
        });
    }

    #[test]
    fn a_reader_that_went_away_before_is_gone() {
        run(async {
            let (reader, writer) = pipe().unwrap();
            drop(reader);
            Reader::of(writer.as_fd()).unwrap().gone().await;
        });
    }

    #[test]
    fn the_reader_of_a_socket_goes_away() {
        run(async {
            let (reader, writer) = UnixStream::pair().unwrap();
            is_gone_after(writer, || drop(reader)).await;
        });
    }

    #[test]
    fn the_reader_of_a_socket_that_we_do_not_read_from_is_there() {
        run(async {
            let (reader, writer) = UnixStream::pair().unwrap();
            writer.shutdown(Shutdown::Read).unwrap();
            is_gone_after(writer, || drop(reader)).await;
        });
    }

    #[test]
    fn files_and_devices_have_no_reader() {
        let file = File::open("/proc/self/exe").unwrap();
        let null = File::create("/dev/null").unwrap();
        assert!(Reader::of(file.as_fd()).is_none());
        assert!(Reader::of(null.as_fd()).is_none());
    }
}
