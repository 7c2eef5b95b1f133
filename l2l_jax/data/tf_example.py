"""TensorFlow's serialised examples, read without TensorFlow."""


def parse(record: bytes):
    """The features of a serialised `tf.train.Example`, by name.

    Raises:
      google.protobuf.message.DecodeError: it is none.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(bytes(record)).features.feature
