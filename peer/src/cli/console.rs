//! Standard error, shared by log lines and the prompt.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use rustyline::ExternalPrinter;

/// Messages queued for printing above a prompt. While the queue is full, further messages go to standard error.
const MAX_QUEUED: usize = 256;

/// Destination of log lines: above the prompt while one is attached, standard error otherwise.
#[derive(Debug, Clone, Default)]
pub struct Console {
    prompt: Arc<Mutex<Option<mpsc::SyncSender<String>>>>,
}

impl Console {
    /// Directs messages to `printer`. The printer can block on the prompt, so it runs in a thread of its own.
    ///
    /// # Errors
    /// The error of starting the thread.
    pub(crate) fn attach(&self, mut printer: impl ExternalPrinter + Send + 'static) -> io::Result<()> {
        let (sender, messages) = mpsc::sync_channel::<String>(MAX_QUEUED);
        std::thread::Builder::new().name("prompt messages".to_owned()).spawn(move || {
            for message in messages {
                if printer.print(message).is_err() {
                    return;
                }
            }
        })?;
        *self.prompt.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Ok(())
    }

    /// Directs messages to standard error.
    pub(crate) fn detach(&self) {
        *self.prompt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Write for Console {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let prompt = self.prompt.lock().unwrap_or_else(PoisonError::into_inner);
        let queued = prompt
            .as_ref()
            .is_some_and(|prompt| prompt.try_send(String::from_utf8_lossy(message).into_owned()).is_ok());
        drop(prompt);
        if !queued {
            io::stderr().write_all(message)?;
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Printer(mpsc::Sender<String>);

    impl ExternalPrinter for Printer {
        fn print(&mut self, message: String) -> rustyline::Result<()> {
            let _ = self.0.send(message);
            Ok(())
        }
    }

    #[test]
    fn message_goes_to_the_prompt_while_one_is_attached() {
        let (sender, printed) = mpsc::channel();
        let mut console = Console::default();
        console.attach(Printer(sender)).unwrap();
        console.write_all(b"hello\n").unwrap();
        assert_eq!(printed.recv_timeout(Duration::from_secs(10)).unwrap(), "hello\n");
        console.detach();
        console.write_all(b"to standard error\n").unwrap();
        // The printer's thread ends and drops the sender without another message.
        assert_eq!(printed.recv_timeout(Duration::from_secs(10)), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
